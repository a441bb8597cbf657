"""Rows of a batch of unknown form, with tensors and arrays inside tuples, lists and mappings.

Also its parts, whose losses add up to that of the whole. A loss is a sum over rows, or a mean over
something: rows, or tokens that have a label. Which of them is found out on a few rows, whose loss
in one piece must be that of two pieces put together:

    L(A and B) = L(A) + L(B)                               a sum
    L(A and B) = (n_A L(A) + n_B L(B)) / (n_A + n_B)       a mean over what n counts

n may be the rows, the entries of an integer tensor that are not -100 (labels that count, with or
without the first, which language models leave out), or the sum of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SUM = "sum"
IGNORED = -100  # torch's label that counts for nothing
FEW = 4  # rows of the smaller piece
CLOSE = {torch.float64: 1e-7, torch.float32: 1e-4}  # other dtypes: a hundredth

TRIALS = 3  # the same number whatever the batch, so that several processes stay together

Count = Callable[[Any], float]
Loss = Callable[[Any], Tensor]


def row_count(batch: Any, axis: int = 0) -> int | None:
    """How many rows the batch has, None where its tensors do not agree on the axis's length."""
    lengths = set(_lengths(batch, axis))
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else None


def _lengths(batch: Any, axis: int) -> list[int]:
    if isinstance(batch, (Tensor, np.ndarray)):
        return [batch.shape[axis] if batch.ndim > axis else -1]
    if isinstance(batch, Mapping):
        return [n for value in batch.values() for n in _lengths(value, axis)]
    if isinstance(batch, (list, tuple)):
        return [n for value in batch for n in _lengths(value, axis)]
    return []


def tensors_in(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested containers, with where they lie."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from tensors_in(f"{path}.{place}", item)


def tensors_of(batch: Any) -> list[Tensor]:
    return [t for _, t in tensors_in("", batch)]


def take_rows(batch: Any, rows: Sequence[int], axis: int = 0) -> Any:
    """The same batch with only these rows, in this order.

    Lists with one text or flag per row are cut like tensors; anything else is the same for all
    rows. Consecutive rows are a view.
    """
    return _taken(batch, rows, axis, row_count(batch, axis))


def _taken(batch: Any, rows: Sequence[int], axis: int, count: int | None) -> Any:
    if isinstance(batch, Tensor):
        if isinstance(rows, range) and rows.step == 1 and len(rows):
            return batch.narrow(axis, rows.start, len(rows))
        return batch.index_select(axis, torch.as_tensor(rows, device=batch.device))
    if isinstance(batch, np.ndarray):
        return batch.take(np.asarray(rows), axis)
    if isinstance(batch, Mapping):
        taken = {key: _taken(value, rows, axis, count) for key, value in batch.items()}
        return taken if type(batch) is dict else type(batch)(taken)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[_taken(value, rows, axis, count) for value in batch])
    if isinstance(batch, (list, tuple)):
        if _one_a_row(batch, count):
            return type(batch)(batch[row] for row in rows)
        return type(batch)(_taken(value, rows, axis, count) for value in batch)
    return batch


def _one_a_row(batch: Sequence[Any], count: int | None) -> bool:
    """Texts, numbers or nothing, as many as there are rows; a tuple of numbers may be a size."""
    numbers = () if isinstance(batch, tuple) else (int, float)
    kinds = (str, bytes, type(None), *numbers)
    return len(batch) == count and all(isinstance(value, kinds) for value in batch)


def counts_of(batch: Any, axis: int) -> dict[str, Count]:
    """What a mean over the batch may be a mean over, by a name that is the same for its parts."""
    found: dict[str, Count] = {"rows": lambda b: float(row_count(b, axis) or 0)}
    for path, t in tensors_in("", batch):
        if t.is_floating_point() or t.is_complex():
            continue
        for short in (False, True):
            name = f"{path}{' but the first' if short else ''}"
            found[f"labels {name}"] = _count(path, short, lambda t: t != IGNORED)
            found[f"mask {name}"] = _count(path, short, lambda t: t)
    return found


def _count(path: str, short: bool, counted: Callable[[Tensor], Tensor]) -> Count:
    def count(batch: Any) -> float:
        t = dict(tensors_in("", batch))[path]
        t = t[..., 1:] if short and t.ndim else t
        return float(counted(t).sum())

    return count


def kinds_of(loss: Loss, batch: Any, axis: int, most: int | None = None) -> list[str]:
    """What the loss may be: `SUM`, or names of `counts_of`; the likeliest first.

    A few passes of a few rows, those that differ most in what might be counted; of `most` rows at a
    time. None fit where rows share a loss in another way, or where it is random.
    """
    rows = row_count(batch, axis) or 1
    few = max(1, min(FEW, rows // 3, (most or rows) // 3))
    fit = [*counts_of(batch, axis), SUM]
    for numbers in _telling(batch, axis, rows, 3 * few):
        found = _fitting(loss, batch, axis, numbers, few)
        fit = [kind for kind in fit if kind in found]
    return fit


def _telling(batch: Any, axis: int, rows: int, size: int) -> list[list[int]]:
    """Rows to try, some lists of so many: with much of something first, with little of it last."""
    chosen: list[list[int]] = []
    for t in tensors_of(batch):
        if t.is_floating_point() or t.is_complex() or t.ndim <= axis:
            continue
        for entries in (t != IGNORED, t != 0):
            counted = entries.movedim(axis, 0).reshape(rows, -1).sum(1)
            order, few = counted.argsort(descending=True), size // 3
            if counted[order[0]] > counted[order[-1]]:
                least = order[int((counted > 0).sum()) - 1]  # of those that have any
                picked = [order[:few], order.flip(0)[: size - few - 1], least.reshape(1)]
                chosen.append(torch.cat(picked).tolist())
    return [
        [part[i % len(part)] for i in range(size)]
        for part in [*chosen, *[list(range(rows))] * TRIALS][:TRIALS]
    ]


def _fitting(loss: Loss, batch: Any, axis: int, numbers: list[int], few: int) -> list[str]:
    """The kinds whose parts add up on these rows."""
    first, rest, both = (
        take_rows(batch, part, axis) for part in (numbers[:few], numbers[few:], numbers)
    )
    with torch.no_grad():
        losses = [loss(part) for part in (first, rest, both)]
    close = CLOSE.get(losses[0].dtype, 1e-2)
    a, b, whole = (float(found) for found in losses)
    found = []
    for name, count in counts_of(batch, axis).items():
        n, m = count(first), count(rest)
        together = (n * a if n else 0.0) + (m * b if m else 0.0)
        sizes = (n * abs(a) if n else 0.0) + (m * abs(b) if m else 0.0)
        if n + m > 0 and abs(together / (n + m) - whole) <= close * sizes / (n + m):
            found.append(name)
    if abs(a + b - whole) <= close * (abs(a) + abs(b)):
        found.append(SUM)
    return found


def parts_of(batch: Any, size: int, axis: int, kind: str) -> Iterator[tuple[Any, float]]:
    """The batch's rows in order, so many at a time, and what each part's loss is multiplied by.

    The losses add up to that of the whole then. Parts that count nothing have no loss to add.
    """
    rows = row_count(batch, axis) or 0
    cuts = [range(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
    counted = [1.0] * len(cuts)
    if kind != SUM:
        count = counts_of(batch, axis)[kind]
        counted = [count(take_rows(batch, cut, axis)) for cut in cuts]
    whole = 1.0 if kind == SUM else sum(counted)
    for cut, n in zip(cuts, counted, strict=True):
        if n:
            yield take_rows(batch, cut, axis), n / whole
