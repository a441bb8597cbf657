"""Whether anything moved between two looks at it: weights, an optimizer's memory, surroundings.

Version counters tell of every ordinary edit; fused optimizers and `.data` go past them. Those edit
the whole of a parameter, so that a checksum of a part of it sees them. Beside the weights that are
trained the validation loss depends on its surroundings: buffers (running statistics), parameters
that no attached optimizer holds, and whatever modules and tensors the loss function refers to (the
discriminator by which a generator is judged, a teacher that follows). Of these version counters
tell; buffers, which batch normalization moves past them and some wrappers write anew in every step,
are compared by their numbers.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inrun.capture import Reading
from inrun.distributed import own_part
from inrun.factors import few
from inrun.utility import own_tensors

CHUNKS, CHUNK = 16, 4096  # what is read of a large parameter: evenly spaced runs of elements
DEPTH = 4  # functions within functions that are looked into


class WeightsMark:
    """Versions and checksums: sums of bits, read as integers of 64.

    Such a sum is exact, where one in the parameter's own precision would miss a small step. Of
    sharded parameters they are those of this process's parts.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        parameters = list(parameters)
        self._versions = [p._version for p in parameters]
        with torch.no_grad():
            sums = [_bits(t) for t in few(_part(own_part(p)) for p in parameters)]
            self._checksums = Reading(torch.stack(sums) if sums else torch.zeros(0))

    def same(self, other: WeightsMark) -> bool:
        """Whether neither versions nor checksums do."""
        return self._versions == other._versions and self.same_numbers(other)

    def same_numbers(self, other: WeightsMark) -> bool:
        """Whether checksums tell of no edit; it waits for the device."""
        here, there = (mark._checksums.wait()[0] for mark in (self, other))
        return here.equal(there)


@torch.no_grad()
def checksum(t: Tensor) -> Tensor:
    """Of a tensor, or of this process's part of it."""
    return _bits(_part(own_part(t.detach())).reshape(-1))


def _part(t: Tensor) -> Tensor:
    if t.numel() <= CHUNKS * CHUNK:
        return t
    rows = t.reshape(-1)[: t.numel() // CHUNKS * CHUNKS].view(CHUNKS, -1)
    return rows[:, -CHUNK:].reshape(-1)


def _bits(flat: Tensor) -> Tensor:
    words = 8 // flat.element_size()
    whole = flat.numel() // words * words
    if flat.data_ptr() % 8:
        flat = flat.clone()  # a view into a larger buffer: 64 bits must begin where they may
    sum_of_whole = flat[:whole].view(torch.int64).sum()
    if whole == flat.numel():
        return sum_of_whole
    rest = flat.new_zeros(words)
    rest[: flat.numel() - whole] = flat[whole:]
    return sum_of_whole + rest.view(torch.int64).sum()


class MemoryMark(NamedTuple):
    """Of one parameter's memory; `bits` is still on its device."""

    tensor: weakref.ref[Tensor]
    version: int
    bits: Tensor


def mark_of(memory: Tensor | None) -> MemoryMark | None:
    """As it is now; None where there is none."""
    if memory is None:
        return None
    return MemoryMark(weakref.ref(memory), memory._version, checksum(memory))


class Edited:
    """Whose memory is another than the one that was left there."""

    def __init__(
        self, left: Mapping[str, MemoryMark | None], found: Mapping[str, MemoryMark | None]
    ):
        self._gone: list[str] = []
        compared: dict[str, Tensor] = {}
        for name, now in found.items():
            before = left.get(name)
            if before is None:
                continue
            if now is None or (before.tensor() is now.tensor() and before.version != now.version):
                self._gone.append(name)
            else:
                compared[name] = before.bits != now.bits.to(before.bits.device)
        self._compared, self._differ = list(compared), Reading(*compared.values())

    def names(self) -> list[str]:
        differ = zip(self._compared, self._differ.wait(), strict=True)
        return self._gone + [name for name, is_other in differ if is_other]


class Surroundings:
    """Looks around a model."""

    def __init__(self, model: nn.Module, loss_fn: object):
        self._model = model
        own = {id(t) for t in [*model.parameters(), *model.buffers()]}
        found = {id(t): t for t in tensors_referred_to(loss_fn)}
        self._elsewhere = [t for i, t in found.items() if i not in own]

    def mark(self, trained: Mapping[str, Tensor]) -> SurroundingsMark:
        ids = {id(p) for p in trained.values()}
        parameters, buffers = own_tensors(self._model)
        others = [p for p in parameters if id(p) not in ids]
        return SurroundingsMark([*others, *self._elsewhere], buffers)

    def holds(self, parameters: Iterable[Tensor]) -> bool:
        """Whether any of these is the model's, or the loss function's."""
        ids = {id(t) for t in [*own_tensors(self._model)[0], *self._elsewhere]}
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
