"""Where samples lie in an operation's output: measured on the model itself, or guessed by shape.

Shapes cannot tell: with as many positions as samples, (T, B, d) and (B, T, d) look alike, a table
of T positions looks like T samples, and every wrong reading still sums to the right gradient. So
the model is run on a few validation rows, again with the last row exchanged for another, and again
with one row less. What changes, and only there, belongs to that row; what neither changes nor
shrinks is the same for all samples. An operation in which the exchange is seen at other samples'
places mixes samples, and is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.errors import MisuseError, NeverPossibleError
from inrun.operations import Layout


class Key(NamedTuple):
    """A use, named so that it is found again in another forward pass."""

    operation: str
    parameters: tuple[str, ...]
    output: int

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(self.parameters)})"


class Constant(NamedTuple):
    """The verdict on an output that is the same for every sample."""


class Verified(NamedTuple):
    """A measured layout; `slots` is a sample's length along the axis in rows of that run."""

    layout: Layout
    slots: int
    ndim: int


Verdict = Constant | Verified


class Seen(NamedTuple):
    """What the capture knows of the batch when it asks.

    `batched`: activations went into the operation, so samples are in its output; if not, only
    the shape can say so. `flattened`: how many slots a sample had wherever the model was seen to
    flatten its batch axis with another one.
    """

    samples: int
    batched: bool
    flattened: frozenset[int]

    def explains(self, size: int) -> bool:
        """Whether an axis of this size is the batch's, flattened.

        Divisibility is not enough: rows that a mask or a packed sequence selected are as many
        as it happens, and do not belong to samples in equal parts.
        """
        return self.samples > 0 and (size / self.samples) in self.flattened


class LayoutBook(ABC):
    """What the capture asks for an output's layout."""

    @abstractmethod
    def layout(self, key: Key, output: Tensor, seen: Seen) -> Layout | None:
        """The output's layout; None where it does not run over samples.

        Raises:
            MisuseError: the number of ids is not that of the batch's rows.
        """


class MeasuredLayouts(LayoutBook):
    """The verdicts of `judge`, and the shape's word for what it did not see."""

    def __init__(self, verdicts: dict[Key, Verdict] | None = None):
        self._verdicts = verdicts or {}
        self.assumed: set[str] = set()  # names of parameters

    def learn(self, verdicts: dict[Key, Verdict]) -> None:
        """Takes over what was measured."""
        self._verdicts = dict(verdicts)

    def layout(self, key: Key, output: Tensor, seen: Seen) -> Layout | None:
        """See `LayoutBook.layout`."""
        verdict = self._verdicts.get(key)
        if isinstance(verdict, Constant):
            return None
        if isinstance(verdict, Verified) and verdict.ndim == output.ndim:
            return _checked(key, verdict, output, seen)
        if seen.samples == 1:
            return Layout(None)
        guess = _by_shape(output, seen)
        if guess is not None:
            self.assumed |= set(key.parameters)
        return guess


def _checked(key: Key, verdict: Verified, output: Tensor, seen: Seen) -> Layout | None:
    """The measured layout, if this output has room for the samples in it."""
    size = output.shape[verdict.layout.axis or 0]
    if verdict.slots == 1 and size != seen.samples:
        raise MisuseError(
            f"{seen.samples} sample ids were given, but the batch has {size} rows in {key}. Pass "
            "one id a row of the batch to attribution.batch(ids)."
        )
    return verdict.layout if verdict.slots == 1 or seen.explains(size) else None


def _by_shape(output: Tensor, seen: Seen) -> Layout | None:
    """The usual layouts, tried in their order of frequency."""
    shape = output.shape
    if shape and shape[0] == seen.samples:
        return Layout(0)
    if seen.batched and output.ndim == 2 and seen.explains(shape[0]):
        return Layout(0)
    if output.ndim >= 3 and shape[1] == seen.samples:
        return Layout(1)
    return None


class RecordingLayouts(LayoutBook):
    """Answers as if the batch were one sample, and keeps what came by."""

    def __init__(self, known: dict[Key, Verdict]):
        self._known = known
        self.outputs: list[tuple[Key, Tensor]] = []

    def layout(self, key: Key, output: Tensor, seen: Seen) -> Layout | None:
        """See `LayoutBook.layout`."""
        self.outputs.append((key, output.detach().clone()))
        return None if isinstance(self._known.get(key), Constant) else Layout(None)


def judge(
    whole: list[tuple[Key, Tensor]],
    exchanged: list[tuple[Key, Tensor]],
    shorter: list[tuple[Key, Tensor]],
    rows: int,
) -> dict[Key, Verdict]:
    """Verdicts from three runs: on `rows` rows, with the last exchanged, and without it.

    Raises:
        NeverPossibleError: an output in which one row's exchange is seen at other rows' places.
    """
    keys = [key for key, _ in whole]
    if keys != [key for key, _ in exchanged] or keys != [key for key, _ in shorter]:
        return {}  # the model takes another way for other rows: nothing can be compared
    verdicts: dict[Key, Verdict] = {}
    doubtful: set[Key] = set()
    for (key, a), (_, b), (_, c) in zip(whole, exchanged, shorter, strict=True):
        verdict = _judge_one(key, a, b, c, rows)
        if verdict is None or verdicts.get(key, verdict) != verdict:
            doubtful.add(key)
        else:
            verdicts[key] = verdict
    return {key: verdict for key, verdict in verdicts.items() if key not in doubtful}


def _judge_one(key: Key, a: Tensor, b: Tensor, c: Tensor, rows: int) -> Verdict | None:
    if a.shape != b.shape or a.ndim != c.ndim:
        return None
    changed = (a - b).abs() > 1e-5 * a.abs().max().clamp(min=1e-30)
    shrunk = [i for i in range(a.ndim) if a.shape[i] != c.shape[i]]
    if not changed.any():
        if len(shrunk) == 1 and a.shape[shrunk[0]] == rows:  # alike for all rows, one each
            return Verified(Layout(shrunk[0]), 1, a.ndim)
        return None if shrunk else Constant()
    if not shrunk and a.shape == c.shape:
        return None  # for instance a value that is already summed over the batch
    for axis in shrunk:
        for sample_major in (True, False):
            layout = Layout(axis, sample_major)
            if a.shape[axis] % rows == 0 and _only_last(layout.split(changed, rows)):
                return Verified(layout, a.shape[axis] // rows, a.ndim)
    raise NeverPossibleError(
        f"In {key} one validation row's values depend on the other rows of its batch, even in "
        "evaluation mode: a sample has no gradient share of its own there. Batch statistics, "
        "contrastive terms inside the model and routing with a shared capacity do this. Use a "
        "layer that treats samples apart, or attach with self_test=False if the rows that you "
        "pass as validation data are really one sample."
    )


def _only_last(changed_B: Tensor) -> bool:
    return not bool(torch.any(changed_B[:-1]))
