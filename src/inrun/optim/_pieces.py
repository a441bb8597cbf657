"""Elementwise work on large parameters, a piece at a time, so that it stays in the cache.

A rule's formulas are a dozen passes over a parameter. Done on all of it, each pass goes to memory
and back; done on pieces of 65,536 elements, only the first and the last one do. On a GPU, where one
launch a pass is the better way, parameters stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

PIECE = 65_536

Arrays = tuple[Tensor, Tensor, Any]
"""Weight, gradient and state of one parameter, or of a piece of it."""
Parts = Sequence[Tensor | float]


def in_pieces(arrays: Arrays, compute: Callable[[Arrays], Parts]) -> Parts:
    """`compute`, elementwise in all arrays, on pieces where that is faster.

    Args:
        arrays: the parameter's.
        compute: gives tensors of the arrays' shape, or numbers that are the same for all elements.
    """
    if not _divisible(arrays):
        return compute(arrays)
    whole: list[Tensor | float] = []
    begin = 0
    for cut in each_piece(arrays):
        parts, end = compute(cut), begin + cut[0].numel()
        if not whole:
            whole = [_room(part, arrays[0]) for part in parts]
        for room, part in zip(whole, parts, strict=True):
            if isinstance(room, Tensor) and isinstance(part, Tensor):
                room.view(-1)[begin:end] = part
        begin = end
    return whole


def each_piece(arrays: Arrays) -> Iterator[Arrays]:
    """Views of a piece of all arrays at a time; of the whole, where that is the better way."""
    if not _divisible(arrays):
        yield arrays
        return
    shape, found = arrays[0].shape, []

    def gather(t: Tensor) -> Tensor:
        found.append(t.view(-1).split(PIECE) if t.shape == shape else repeat(t))
        return t

    changed(arrays, gather)
    for cut in zip(*found, strict=False):
        parts = iter(cut)
        yield changed(arrays, lambda _, parts=parts: next(parts))  # type: ignore[misc]


def _divisible(arrays: Arrays) -> bool:
    """On the CPU, larger than a piece, laid out alike."""
    shape = arrays[0].shape
    found: list[Tensor] = []
    changed(arrays, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return shape.numel() > PIECE and all(
        t.device.type == "cpu" and (t.ndim == 0 or (t.shape == shape and t.is_contiguous()))
        for t in found
    )


def _room(part: Tensor | float, weight: Tensor) -> Tensor | float:
    return torch.empty_like(weight, dtype=part.dtype) if isinstance(part, Tensor) else part


def as_rows(t_K: Tensor) -> Tensor:
    """(K, elements) of (K, *shape), for any shape: that of a number and of nothing too."""
    return t_K.reshape(t_K.shape[0], t_K.shape[1:].numel())


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with each of its tensors changed: states are named tuples, or mappings in them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: changed(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(changed(part, change) for part in value))
    if isinstance(value, tuple):
        return tuple(changed(part, change) for part in value)
    return value
