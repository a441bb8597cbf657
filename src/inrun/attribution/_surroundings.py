"""What the validation loss depends on beside the weights that are trained, and whether it moved.

Buffers (running statistics), parameters of the model that no attached optimizer holds, and whatever
modules and tensors the loss function refers to: the discriminator by which a generator is judged, a
teacher that follows. Version counters tell of their edits; buffers, which batch normalization moves
past them and some wrappers write anew in every step, are compared by their numbers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inrun.attribution._weights import WeightsMark

DEPTH = 4  # functions within functions that are looked into


class Surroundings:
    """Looks around a model.

    Args:
        model: that is trained.
        loss_fn: that judges it.
    """

    def __init__(self, model: nn.Module, loss_fn: object):
        self._model = model
        own = {id(t) for t in [*model.parameters(), *model.buffers()]}
        found = {id(t): t for t in tensors_referred_to(loss_fn)}
        self._elsewhere = [t for i, t in found.items() if i not in own]

    def mark(self, trained: Mapping[str, Tensor]) -> SurroundingsMark:
        """As they are now."""
        ids = {id(p) for p in trained.values()}
        others = [p for p in self._model.parameters() if id(p) not in ids]
        return SurroundingsMark([*others, *self._elsewhere], list(self._model.buffers()))

    def holds(self, parameters: Iterable[Tensor]) -> bool:
        """Whether any of these is the model's, or the loss function's."""
        ids = {id(t) for t in [*self._model.parameters(), *self._elsewhere]}
        return any(id(p) in ids for p in parameters)


class SurroundingsMark:
    """Which tensors they are, and their versions."""

    def __init__(self, others: list[Tensor], buffers: list[Tensor]):
        self._tensors = [*others, *buffers]  # kept, so that no other takes an identity
        self._others = [_version(t) for t in others]
        self._buffers = [_version(t) for t in buffers]
        plain = [t for t in buffers if _is_plain(t)]
        self._numbers = WeightsMark(plain) if plain else None
        self._strange = [_version(t) for t in buffers if not _is_plain(t)]

    def same(self, other: SurroundingsMark) -> bool:
        """Whether nothing moved between the two but numbers in buffers."""
        there = [id(t) for t in self._tensors] == [id(t) for t in other._tensors]
        return there and self._others == other._others and self._strange == other._strange

    def same_buffers(self, other: SurroundingsMark) -> bool:
        """Whether those did not move either."""
        if self._numbers is None or other._numbers is None:
            return self._buffers == other._buffers
        return self._numbers.same_numbers(other._numbers)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _is_plain(t: Tensor) -> bool:
    return type(t) in (Tensor, nn.Parameter) and (
        t.layout == torch.strided and t.element_size() <= 8 and not t.is_complex()
        and not t.is_quantized and t.is_contiguous()
    )  # fmt: skip


def tensors_referred_to(function: object) -> list[Tensor]:
    """Tensors, and those of modules, that a function holds or names, as far as can be seen."""
    return list(_walk(function, DEPTH, set()))


def _walk(thing: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    if depth < 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    else:
        for part in _parts(thing):
            yield from _walk(part, depth - 1, seen)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return [*cells, *(part for part in named if _is_of_a_loss(part))]
    if isinstance(thing, (list, tuple)):
        return list(thing)[:64]
    if isinstance(thing, dict):
        return list(thing.values())[:64]
    inner = getattr(thing, "__dict__", None)
    if callable(thing) and not isinstance(thing, type) and isinstance(inner, dict):
        return [part for part in inner.values() if _is_of_a_loss(part)]
    return []


def _is_of_a_loss(thing: Any) -> bool:
    return isinstance(thing, (Tensor, nn.Module, functools.partial, types.FunctionType))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # named before it is given a value
        return False
