"""Operations that move entries and change none: done to the map as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.owners._map import NONE, Map, adopted, compressed, reshaped, squeezed
from inrun.owners._operation import Found, Op, rule, rule_of_first

_GETTERS = [getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")]
_SAME = [getattr(torch.Tensor, name).__get__ for name in ("data", "real", "imag")]


@rule_of_first(
    "view reshape flatten unflatten view_as reshape_as ravel _unsafe_view _reshape_alias"
)
def reshape(op: Op, m: Map) -> Found | None:
    """Other axes over the same entries."""
    x, out = op.args[0], op.out
    if x.numel() != out.numel():  # view(dtype) into another size
        return None
    key = ("reshape", x.shape, out.shape)
    return [m.remembered(key, lambda: m.derived(reshaped(m.codes, x.shape, out.shape)))]


@rule_of_first("expand expand_as broadcast_to")
def expand(op: Op, m: Map) -> Found:
    """Axes of length 1 spread, and axes put in front."""
    return [m.in_front(op.out.ndim)]


@rule_of_first(
    "transpose permute swapaxes swapdims movedim moveaxis t adjoint squeeze unsqueeze tile repeat "
    "repeat_interleave select narrow chunk split tensor_split split_with_sizes unbind diagonal "
    "rot90 flip roll fliplr flipud unfold unsafe_chunk unsafe_split unsafe_split_with_sizes vsplit "
    "hsplit dsplit as_strided atleast_1d atleast_2d atleast_3d narrow_copy channel_shuffle",
    *_GETTERS,
    torch.Tensor.unfold,
)
def move(op: Op, m: Map) -> Found:
    """Whatever the operation does, done to the map."""
    x = op.args[0]
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


@rule_of_first("view_as_real view_as_complex", *_SAME)
def complex_view(op: Op, m: Map) -> Found:
    """Pairs of numbers along a last axis, or one complex number."""
    out = op.out
    if m.ndim == out.ndim:
        return [m]
    if out.ndim > m.ndim:
        return [m.remembered("unsqueeze", lambda: m.derived(m.codes.unsqueeze(-1)))]
    return [m.remembered("last", lambda: m.derived(squeezed(m.codes)[..., 0]))]


@rule_of_first("_pack_padded_sequence")
def pack(op: Op, m: Map) -> Found:
    """Steps of all sequences, the longest sequences first."""
    codes = m.codes.expand(*op.args[0].shape[:2], *m.shape[2:])
    data, _ = op.function(codes.double(), *host(op.args[1:]), **_host_named(op.kwargs))
    return [m.derived(squeezed(data.to(torch.int32))), *[None] * (len(op.outs) - 1)]


@rule_of_first("_pad_packed_sequence")
def unpack(op: Op, m: Map) -> Found:
    """The same back: padding belongs to its sequence."""
    x, sizes = op.args[:2]
    codes = m.codes.expand(x.shape[0], *m.shape[1:]).double()
    batch_first, total = op.get(2, "batch_first"), op.get(4, "total_length", 0)
    padded, _ = op.function(codes, sizes.cpu(), batch_first, float(NONE), total)
    owners = adopted(padded.to(torch.int32), op.samples, alone=True)
    return [m.derived(squeezed(owners)), *[None] * (len(op.outs) - 1)]


@rule("as_tensor asarray tensor")
def made_of(op: Op) -> Found | None:
    """A tensor as it is, or a copy; one that is put together of several is asked."""
    return op.every(op.first) if op.args and isinstance(op.args[0], Tensor) else None
