"""Takes rows out of a batch of unknown form: tensors and arrays inside tuples, lists, mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors in a batch."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [t for value in batch.values() for t in tensors_of(value)]
    if isinstance(batch, (list, tuple)):
        return [t for value in batch for t in tensors_of(value)]
    return []


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
    kinds = (
        (str, bytes, type(None))
        if isinstance(batch, tuple)
        else (str, bytes, type(None), int, float)
    )
    return len(batch) == count and all(isinstance(value, kinds) for value in batch)
