"""What a step is judged by: the validation loss, as one target or as several named ones.

V(w) = sum_k weight_k V_k(w), the weights adding up to 1. A value is a contribution to the
*reduction* of V: positive helped. Each named target gets a column of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.utility._rows import row_count, take_rows

_RESERVED = {
    "total", "step", "sample_id", "value", "value_normalised", "visits", "first_step", "last_step",
    "weight", "paid_out", "standard_error", "variance", "gradient_size",
}  # fmt: skip

HALF = "half of the validation rows"
"""A target of weight 0, with every other validation row, each weighed as in the total.

What is left of the total is that of the other half: the two say how far other validation rows would
rank the samples alike (`inrun.agreement`).
"""

LossFunction = Callable[[nn.Module, Any], Tensor]


class Utility:
    """A validation loss.

    Args:
        loss_fn: `loss_fn(model, batch)` returns the loss, a scalar tensor with a graph. It is
            called in evaluation mode and must not depend on random numbers, unless `draws` fixes
            them.
        batch: one validation batch in any form that `loss_fn` takes: a tensor, a tuple, a dict with
            tensors, flags, texts or dicts in it.
        targets: a dict from target names to batches, in place of `batch`.
        weights: of the named targets in the total; equal where not given. They are scaled to
            add up to 1.
        batch_size: how many rows are passed at a time, where the whole does not fit: the parts'
            losses and gradients are added up, and memory is as for so many rows. The loss must be a
            sum or a mean over rows, or over labels (those that are not -100), which is tried on a
            few rows at attach.
        rows_axis: the axis of a validation batch's tensors that runs over rows; 1 for data that
            has its sequence first.
        draws: of a loss that draws random numbers (diffusion, a VAE, masked tokens), the mean over
            so many calls, with the same random numbers in every pass: those of `torch`, `numpy` and
            `random`. Opening and closing loss are then comparable, as a loss must be whose change
            is to be explained. Memory is that of so many calls at once. 1 calls it once, and leaves
            random numbers alone.

    Raises:
        MisuseError: no batch, both forms at once, weights that do not fit the targets, or rows that
            cannot be told apart where they must be.

    Example:
        >>> import torch, inrun
        >>> from torch import nn
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> inrun.Utility(loss_fn, (x, y)).targets
        ('validation',)
        >>> by_class = {f"class {c}": (x[y == c], y[y == c]) for c in (0, 1)}
        >>> inrun.Utility(loss_fn, targets=by_class).targets
        ('class 0', 'class 1')
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        batch: Any = None,
        *,
        targets: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        rows_axis: int = 0,
        draws: int = 1,
    ):
        if not callable(loss_fn):
            raise MisuseError("loss_fn must be callable: loss_fn(model, batch) -> scalar loss.")
        if (batch is None) == (targets is None):
            given = "Neither" if batch is None else "Both"
            raise MisuseError(
                f"{given} of batch and targets was given. Pass either a validation batch or "
                "targets={name: batch, ...}."
            )
        self.named = targets is not None
        self.loss_fn, self.rows_axis = loss_fn, rows_axis
        self.batches: dict[str, Any] = (
            {"validation": batch} if targets is None else {str(k): v for k, v in targets.items()}
        )
        if not self.batches:
            raise MisuseError("The utility has no targets: there is nothing to be judged by.")
        _require_names(self.batches)
        taken = sorted(_RESERVED & set(self.batches))
        if taken:
            raise MisuseError(
                f"A target cannot be called {taken[0]!r}: tables have a column of that name. "
                "Choose another name."
            )
        self.weights = _weights(tuple(self.batches), weights)
        self.rotating = self.refresh = 1
        self.differentiates = False  # loss_fn needs a graph inside, as is found out by calling it
        if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
            raise MisuseError(f"draws={draws!r} is no number of calls of loss_fn.")
        self.draws = draws
        self._parts = _parts(self.batches, 1, rows_axis)
        self.batch_size = _require_size(batch_size, self.batches, rows_axis)
        self.scales: dict[str, float] = {}  # by target, of processes with unequal parts
        self.kinds: dict[str, list[str]] = {}  # by target, what its loss turned out to be

    def on(self, batches: Mapping[str, Any]) -> Utility:
        """The same on other batches of the same names, such as the same rows on another device."""
        made = copy.copy(self)
        made.batches = dict(batches)
        made._parts = _parts(made.batches, self.rotating, self.rows_axis)
        return made

    def judging(self) -> Utility:
        """The same of the targets that count in the total."""
        weights = {n: w for n, w in zip(self.targets, self.weights, strict=True) if w > 0}
        made = self.on({name: self.batches[name] for name in weights})
        made.weights = tuple(weights.values())
        return made

    def scaled(self, scales: Mapping[str, float]) -> Utility:
        """The same with losses that are multiplied by numbers, one per target."""
        made = copy.copy(self)
        made.scales = dict(scales)
        return made

    def can_split(self, count: int) -> bool:
        """Whether the rows, which are not split yet, can be split into so many parts."""
        rows = [row_count(batch, self.rows_axis) for batch in self.batches.values()]
        return self.rotating == 1 and all((n or 0) >= count for n in rows)

    def split(self, parts: int, every: int = 1) -> Utility:
        """The same, of whose rows each pass looks at one of so many parts, after so many steps.

        Raises MisuseError for fewer rows than parts, or rows that cannot be told apart.
        """
        made = copy.copy(self)
        made.rotating, made.refresh = parts, every
        made._parts = _parts(made.batches, parts, made.rows_axis)
        return made

    def part(self, number: int) -> Utility:
        """What a validation pass looks at, by the number of the pass."""
        if len(self._parts) < 2:
            return self
        made = copy.copy(self)
        made.batches, made._parts = self._parts[number % len(self._parts)], []
        return made

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets' names, in their order."""
        return tuple(self.batches)


def _require_names(names: Iterable[str]) -> None:
    """Raises where a name cannot be a column's in every file and table that is written of it."""
    for name in names:
        whole = name.isascii() or name.encode("utf-8", "replace").decode() == name
        if not name.strip() or not whole or any(c in name for c in "\0\n\r"):
            raise MisuseError(
                f"A target cannot be called {name!r}: tables have a column by each target's name, "
                "which must be a line of text that is not empty. Choose another name."
            )


def _parts(batches: Mapping[str, Any], count: int, axis: int) -> list[dict[str, Any]]:
    """Each target's rows, dealt out in turn."""
    if count == 1:
        return []
    parts: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, batch in batches.items():
        rows = row_count(batch, axis)
        if rows is None or rows < count:
            raise MisuseError(
                f"validation_parts={count} needs a validation batch of at least as many rows "
                f"that can be told apart, and target {name!r} has {rows or 'none'}. Use "
                "fewer parts."
            )
        for number, part in enumerate(parts):
            part[name] = take_rows(batch, range(number, rows, count), axis)
    return parts


def _require_size(size: int | None, batches: Mapping[str, Any], axis: int) -> int | None:
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise MisuseError(f"batch_size={size!r} is no number of rows.")
    for name, batch in batches.items():
        if row_count(batch, axis) is None:
            raise MisuseError(
                f"batch_size={size} needs a validation batch whose rows can be told apart, and the "
                f"tensors of target {name!r} are not of one length along axis {axis}. Give them "
                "one, or say rows_axis."
            )
    return size


def _weights(names: tuple[str, ...], given: Mapping[str, float] | None) -> tuple[float, ...]:
    if given is None:
        return (1.0 / len(names),) * len(names)
    if set(given) != set(names) or any(not value >= 0 for value in given.values()):
        raise MisuseError(
            f"weights must give each target ({', '.join(names)}) a number of at least 0."
        )
    total = float(sum(given.values()))
    if total <= 0:
        raise MisuseError("weights must not all be 0.")
    return tuple(float(given[name]) / total for name in names)
