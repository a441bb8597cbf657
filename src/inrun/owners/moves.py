"""Operations that move entries and change none: done to the map as well.

Also those by index, whose maps depend on data and are made anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.owners._map import MIXED, NONE, Map, adopted, compressed, reshaped, squeezed
from inrun.owners._operation import Found, Op
from inrun.owners._registry import rule

_GETTERS = [getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")]
_SAME = [getattr(torch.Tensor, name).__get__ for name in ("data", "real", "imag")]


@rule("view reshape flatten unflatten view_as reshape_as ravel _unsafe_view _reshape_alias")
def reshape(op: Op) -> Found | None:
    """Other axes over the same entries."""
    m, x, out = op.first, op.args[0], op.out
    if m is None:
        return op.every(None)
    if x.numel() != out.numel():  # view(dtype) into another size
        return None
    key = ("reshape", x.shape, out.shape)
    return [m.remembered(key, lambda: m.derived(reshaped(m.codes, x.shape, out.shape)))]


@rule("expand expand_as broadcast_to")
def expand(op: Op) -> Found:
    """Axes of length 1 spread, and axes put in front."""
    m = op.first
    if m is None or m.ndim == op.out.ndim:
        return [m]
    shape = (1,) * (op.out.ndim - m.ndim) + tuple(m.shape)
    return [m.remembered(("axes", op.out.ndim), lambda: m.derived(m.codes.reshape(shape)))]


@rule(
    "transpose permute swapaxes swapdims movedim moveaxis t adjoint squeeze unsqueeze tile repeat "
    "repeat_interleave select narrow chunk split tensor_split split_with_sizes unbind diagonal "
    "rot90 flip roll fliplr flipud unfold unsafe_chunk unsafe_split unsafe_split_with_sizes vsplit "
    "hsplit dsplit as_strided atleast_1d atleast_2d atleast_3d narrow_copy channel_shuffle",
    *_GETTERS,
    torch.Tensor.unfold,
)
def move(op: Op) -> Found:
    """Whatever the operation does, done to the map."""
    m, x = op.first, op.args[0]
    if m is None:
        return op.every(None)
    if any(isinstance(a, Tensor) for a in (*op.args[1:], *op.kwargs.values())):
        return _moved(op, m, x)  # by numbers that may be others next time
    rest = tuple(tuple(a) if isinstance(a, (list, torch.Size)) else a for a in op.args[1:])
    key: tuple[Any, ...] = (op.function, x.shape, rest, tuple(op.kwargs.items()))
    if op.name == "as_strided":
        key = (*key, x.stride(), x.storage_offset())
    return [*m.remembered(key, lambda: _moved(op, m, x))]


def _moved(op: Op, m: Map, x: Tensor) -> Found:
    codes = m.codes.expand(x.shape)
    if op.name == "as_strided":  # by the storage's order, which the map has not
        codes = torch.empty_like(x, dtype=torch.int32, device="cpu").copy_(codes)
    moved = op.function(codes, *host(op.args[1:]), **_host_named(op.kwargs))
    several = [moved] if isinstance(moved, Tensor) else list(moved)
    return [m.derived(squeezed(compressed(codes))) for codes in several]


def host(values: Sequence[Any]) -> list[Any]:
    """Arguments with their tensors on the CPU, where the maps are."""
    return [
        v.detach().cpu() if isinstance(v, Tensor)
        else type(v)(host(v)) if type(v) in (list, tuple)
        else v
        for v in values
    ]  # fmt: skip


def _host_named(named: Any) -> dict[str, Any]:
    return dict(zip(named, host(list(named.values())), strict=True))


@rule("view_as_real view_as_complex", *_SAME)
def complex_view(op: Op) -> Found:
    """Pairs of numbers along a last axis, or one complex number."""
    m, out = op.first, op.out
    if m is None or m.ndim == out.ndim:
        return [m]
    if out.ndim > m.ndim:
        return [m.remembered("unsqueeze", lambda: m.derived(m.codes.unsqueeze(-1)))]
    return [m.remembered("last", lambda: m.derived(squeezed(m.codes)[..., 0]))]


@rule("__getitem__")
def get_item(op: Op) -> Found | None:
    """`x[index]`, by whatever index."""
    x, index = op.args
    m = op.first
    parts = index if isinstance(index, tuple) else (index,)
    by_data = not all(_plain(p) for p in parts)
    if m is None:
        return _table(op, x, parts) if by_data else op.every(None)
    if not by_data:
        key = ("get", x.shape, str(parts))
        return [m.remembered(key, lambda: m.derived(compressed(m.codes.expand(x.shape)[index])))]
    parts = tuple(_as_tensor(p) for p in host(parts))
    used = sum(_axes_of(p) for p in parts)
    if any(p is Ellipsis for p in parts):
        codes = m.codes.expand(x.shape)
    else:
        codes = m.codes.expand(*x.shape[:used], *m.shape[used:])
    return [m.derived(squeezed(compressed(codes[parts])))]


def _plain(part: Any) -> bool:
    """Whether a part of an index says all by its text, so that it can be remembered by it."""
    if isinstance(part, slice):
        return all(_plain(p) for p in (part.start, part.stop, part.step))
    return part is None or part is Ellipsis or isinstance(part, (int, np.integer))


def _as_tensor(part: Any) -> Any:
    """An array, or a sequence of numbers, as the tensor that it is taken for."""
    return part if _plain(part) or isinstance(part, (slice, Tensor)) else torch.as_tensor(part)


def _axes_of(part: Any) -> int:
    """How many axes of the tensor a part of an index takes."""
    if part is None:
        return 0
    if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
        return part.ndim
    return 0 if part is Ellipsis or isinstance(part, (bool, np.bool_)) else 1


def _table(op: Op, x: Tensor, parts: tuple[Any, ...]) -> Found | None:
    """What is the same for all, read by the samples' own indices."""
    indices = [(p, op.map_of(p)) for p in parts if isinstance(p, Tensor)]
    if all(m is None for _, m in indices):
        return op.every(None)
    if any(_axes_of(p) > 1 or p.dtype == torch.bool for p, _ in indices):
        if len(parts) != 1:
            return None
        (mask, m) = indices[0]
        assert m is not None
        codes = m.codes.expand(mask.shape)[mask.cpu()]
        return [m.derived(squeezed(codes.reshape(-1, *(1,) * (op.out.ndim - 1))))]
    # the indices' own axes, where they come to lie in the result
    shape = torch.broadcast_shapes(*[p.shape for p, _ in indices])
    places = [i for i, p in enumerate(parts) if isinstance(p, (Tensor, list, int))]
    together = places == list(range(places[0], places[-1] + 1))
    if any(p is Ellipsis for p in parts):
        return None
    before = sum(1 for p in parts[: places[0]] if p is None or isinstance(p, slice))
    lead = before if together else 0
    m = op.join([(p, i) for p, i in indices if i is not None])
    assert m is not None
    codes = m.codes.reshape(m.shape[m.ndim - min(m.ndim, len(shape)) :])
    codes = codes.reshape((1,) * (len(shape) - codes.ndim) + tuple(codes.shape))
    after = op.out.ndim - lead - len(shape)
    return [m.derived(codes.reshape((1,) * lead + tuple(codes.shape) + (1,) * after))]


@rule("index_select")
def index_select(op: Op) -> Found | None:
    """Entries along one axis, by number."""
    m, axis, index = op.first, op.get(1, "dim"), op.get(2, "index")
    if m is None:
        return _looked_up(op, index, axis)
    if m.shape[axis] == 1:
        return [m]
    return [m.derived(squeezed(m.codes.index_select(axis, index.cpu())))]


def _looked_up(op: Op, index: Any, axis: int) -> Found:
    """A table that is the same for all, of whose entries samples take their own."""
    m = op.map_of(index)
    if m is None:
        return op.every(None)
    shape = [1] * op.out.ndim
    shape[axis] = m.codes.numel()
    return [m.derived(m.codes.reshape(shape))]


@rule("gather take_along_dim")
def gather(op: Op) -> Found | None:
    """Entries along one axis, each by a number of its own."""
    named = op.name == "take_along_dim"
    index = op.get(1, "indices") if named else op.get(2, "index")
    axis = op.get(2, "dim") if named else op.get(1, "dim")
    m, x = op.first, op.args[0]
    if axis is None:
        return None
    if m is None:
        own = op.map_of(index)
        return [own]
    axis %= x.ndim
    if m.shape[axis] == 1 and all(
        s == 1 or s == o for s, o in zip(m.shape, op.out.shape, strict=True)
    ):
        return [m]
    codes = m.codes.expand(x.shape)
    if named:
        return [m.derived(squeezed(torch.take_along_dim(codes, index.cpu(), axis)))]
    return [m.derived(squeezed(codes.gather(axis, index.cpu())))]


@rule("masked_select take")
def select_flat(op: Op) -> Found | None:
    """Entries in a row, by a mask or by their number."""
    m, x, by = op.first, op.args[0], op.args[1] if len(op.args) > 1 else None
    if by is None:
        return None
    if m is None:  # the same for all, read by the samples' own numbers
        own = op.map_of(by)
        if own is None or op.name == "take":
            return op.every(own)
        shape = torch.broadcast_shapes(x.shape, by.shape)
        codes = own.codes.expand(by.shape).expand(shape)
        return [own.derived(squeezed(codes[by.cpu().expand(shape)]))]
    if op.name == "take":
        return [m.derived(squeezed(m.codes.expand(x.shape).take(by.cpu())))]
    shape = torch.broadcast_shapes(x.shape, by.shape)
    codes = m.codes.expand(shape) if m.ndim == len(shape) else m.codes.expand(x.shape).expand(shape)
    return [m.derived(squeezed(codes[by.cpu().expand(shape)]))]


@rule("embedding")
def embedding(op: Op) -> Found:
    """Rows of a table."""
    m = op.map_of(op.get(0, "input"))
    if m is None:
        return [None]
    return [m.remembered("unsqueeze", lambda: m.derived(m.codes.unsqueeze(-1)))]


@rule("one_hot")
def one_hot(op: Op) -> Found | None:
    """A new last axis."""
    return embedding(op)


@rule("_pack_padded_sequence")
def pack(op: Op) -> Found:
    """Steps of all sequences, the longest sequences first."""
    m, x = op.first, op.args[0]
    if m is None:
        return op.every(None)
    codes = m.codes.expand(*x.shape[:2], *m.shape[2:])
    data, _ = op.function(codes.double(), *host(op.args[1:]), **_host_named(op.kwargs))
    return [m.derived(squeezed(data.to(torch.int32))), *[None] * (len(op.outs) - 1)]


@rule("_pad_packed_sequence")
def unpack(op: Op) -> Found | None:
    """The same back: padding belongs to its sequence."""
    m, x, sizes = op.first, op.args[0], op.args[1]
    if m is None:
        return op.every(None)
    codes = m.codes.expand(x.shape[0], *m.shape[1:]).double()
    batch_first, total = op.get(2, "batch_first"), op.get(4, "total_length", 0)
    padded, _ = op.function(codes, sizes.cpu(), batch_first, float(NONE), total)
    owners = adopted(padded.to(torch.int32), op.samples, alone=True)
    return [m.derived(squeezed(owners)), *[None] * (len(op.outs) - 1)]


@rule("unique _unique2 unique_consecutive")
def unique(op: Op) -> Found | None:
    """Distinct values: an owner where one sample alone has the value."""
    m, x = op.first, op.args[0]
    if m is None:
        return op.every(None)
    axis = op.kwargs.get("dim")
    if axis is not None and x.ndim > 1 and m.varying not in ((), (axis % x.ndim,)):
        return None
    values = x.detach().cpu()
    own = m.codes.expand(x.shape)
    if axis is not None and x.ndim > 1:
        own = m.codes.reshape(-1).expand(x.shape[axis])
        _, back = values.unique(dim=axis, return_inverse=True)
    elif op.name == "unique_consecutive":
        _, back = values.unique_consecutive(return_inverse=True)
    else:
        _, back = values.unique(return_inverse=True)
    distinct = int(op.out.shape[axis or 0])
    found = spread_owners(back.flatten(), own.flatten(), distinct, why=op.name)
    shape = [1] * op.out.ndim
    shape[axis or 0] = distinct
    maps: Found = [Map(squeezed(found.codes.reshape(shape)), found.why, m.how)]
    for out in op.outs[1:]:
        whole = out.shape == x.shape
        maps.append(m.derived(m.codes) if whole and axis is None else None)
    return maps


def spread_owners(
    places: Tensor, owners: Tensor, length: int, *, why: str, clash: int = MIXED
) -> Map:
    """Owners of what several slots were put together into, (length,).

    Args:
        places: of each slot in the result, (n,).
        owners: of each slot, (n,).
        length: of the result.
        why: the operation's name.
        clash: the code where several samples came together.
    """
    large = 2**30
    some = owners != NONE
    low = torch.full((length,), large, dtype=torch.int32)
    high = torch.full((length,), NONE, dtype=torch.int32)
    low.scatter_reduce_(0, places[some], owners[some].to(torch.int32), "amin")
    high.scatter_reduce_(0, places[some], owners[some].to(torch.int32), "amax")
    codes = torch.where(low == large, NONE, torch.where(low == high, low, clash))
    return Map(codes.to(torch.int32), why)
