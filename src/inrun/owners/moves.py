"""Operations that move entries and change none, put tensors together, or write a part of one.

What is done to the tensors is done to their maps. Slots of no one (a class token in front of
patches, zeros that are written over) are adopted by their row where all others of it have one
owner; see `adopted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inrun.operations import replace
from inrun.owners._map import (
    MIXED,
    NONE,
    SUM,
    Map,
    adopted,
    combined_at,
    compressed,
    reshaped,
    squeezed,
)
from inrun.owners._operation import Found, Op, rule, rule_of_first, stem

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
    moved = op.function(codes, *host(op.args[1:]), **host(op.kwargs))
    several = [moved] if isinstance(moved, Tensor) else list(moved)
    return [m.derived(squeezed(compressed(codes))) for codes in several]


def host(value: Any) -> Any:
    """Arguments with their tensors on the CPU, where the maps are."""
    return replace(value, lambda t: t.detach().cpu())


@rule_of_first("view_as_real view_as_complex", *_SAME)
def complex_view(op: Op, m: Map) -> Found:
    """Pairs of numbers along a last axis, or one complex number."""
    out = op.out
    if m.ndim == out.ndim:
        return [m]
    if out.ndim > m.ndim:
        return [m.remembered("unsqueeze", lambda: m.derived(m.codes.unsqueeze(-1)))]
    return [m.remembered("last", lambda: m.derived(squeezed(m.codes)[..., 0]))]


@rule("as_tensor asarray tensor")
def made_of(op: Op) -> Found | None:
    """A tensor as it is, or a copy; one that is put together of several is asked."""
    return op.every(op.first) if op.args and isinstance(op.args[0], Tensor) else None


@rule("cat concat concatenate stack hstack vstack dstack column_stack row_stack")
def put_together(op: Op) -> Found:
    """Tensors side by side along one axis."""
    parts = [(t, op.map_of(t)) for t in op.args[0]] if op.args else list(
        zip(op.tensors, op.maps, strict=True)
    )  # fmt: skip
    if all(m is None for _, m in parts):
        return [None]
    if op.name not in ("cat", "concat", "concatenate", "stack"):
        return [_by_running(op, parts)]
    stacked, ndim = op.name == "stack", op.out.ndim
    parts = [(t, m) for t, m in parts if stacked or t.ndim == ndim]  # cat takes empty vectors
    axis = op.get(1, "dim", op.kwargs.get("axis", 0)) % ndim
    maps = [m for _, m in parts]
    first = maps[0]
    if first is not None and all(m is first for m in maps):
        wide = stacked or first.shape[axis] == 1
        if wide and first.owned and (first.varying or op.samples == 1):
            codes = first.codes
            if not stacked:
                return [first]
            return [
                first.remembered(("stacked", axis), lambda: first.derived(codes.unsqueeze(axis)))
            ]
    key = ("cat", stacked, axis, *[(id(m), t.shape) for t, m in parts])
    known = next(m for m in maps if m is not None)
    make = partial(_cat, parts, axis, stacked=stacked, ndim=ndim, samples=op.samples)
    return [known.remembered(key, make, *maps)]


def _cat(
    parts: Sequence[tuple[Tensor, Map | None]], axis: int, *, stacked: bool, ndim: int, samples: int
) -> Map:
    owned = [None if m is None else m.codes for _, m in parts]
    pieces = [None if c is None else c.unsqueeze(axis) if stacked else c for c in owned]
    lengths = [1 if stacked else t.shape[axis] for t, _ in parts]
    known = [p for p in pieces if p is not None]
    size = [max(p.shape[i] for p in known) for i in range(ndim)]
    laid = []
    for codes, length in zip(pieces, lengths, strict=True):
        shape = [length if i == axis else n for i, n in enumerate(size)]
        none = torch.full((1,) * ndim, NONE, dtype=torch.int32)
        laid.append((none if codes is None else codes).expand(shape))
    m = next(m for _, m in parts if m is not None)
    return m.derived(squeezed(adopted(torch.cat(laid, axis), samples, alone=not stacked)))


def _by_running(op: Op, parts: Sequence[tuple[Tensor, Map | None]]) -> Map:
    """The rarer ways to put tensors side by side, done to the maps."""
    none = torch.tensor(NONE, dtype=torch.int32)
    laid = [(none if m is None else m.codes).expand(t.shape) for t, m in parts]
    m = next(m for _, m in parts if m is not None)
    return m.derived(squeezed(adopted(op.function(laid), op.samples, alone=True)))


@rule("pad constant_pad_nd")
def pad(op: Op) -> Found | None:
    """Constants around, or entries repeated there."""
    m, x = op.first, op.args[0]
    if m is None:
        return [None]
    mode = "constant" if op.name != "pad" else op.get(2, "mode", "constant")
    widths = tuple(op.get(1, "pad"))
    if mode == "constant":
        axes = [x.ndim - 1 - i for i in range(len(widths) // 2) if any(widths[2 * i : 2 * i + 2])]
        if all(m.shape[axis] == 1 for axis in axes) and m.owned:
            return [m]  # adopted
        codes = torch.nn.functional.pad(m.codes.expand(x.shape), widths, value=NONE)
        return [m.derived(squeezed(adopted(codes, op.samples, alone=True)))]
    codes = torch.nn.functional.pad(m.codes.expand(x.shape).double(), widths, mode=mode)
    return [m.derived(squeezed(codes.to(torch.int32)))]


@rule("__setitem__ index_put index_copy scatter masked_scatter slice_scatter select_scatter "
      "diagonal_scatter index_fill")  # fmt: skip
def overwrite(op: Op) -> Found | None:
    """A part of a tensor overwritten by another, or by a number."""
    name = stem(op.name)
    if name == "index_put" and op.get(3, "accumulate", False):
        return accumulate(op)
    if op.kwargs.get("reduce") is not None:
        return None
    target = op.args[0]
    source = {
        "__setitem__": (2, "value"),
        "index_put": (2, "values"),
        "index_copy": (3, "source"),
        "scatter": (3, "src"),
        "masked_scatter": (2, "source"),
        "index_fill": (3, "value"),
    }
    place, named = source.get(name, (1, "src"))
    value = op.get(place, named)
    before, written = op.first, op.map_of(value)
    if before is None and written is None:
        return op.every(None)
    codes = _laid(before, target.shape).clone()
    new = torch.tensor(NONE, dtype=torch.int32) if written is None else written.codes
    if isinstance(value, Tensor) and new.ndim in (0, value.ndim):
        new = new.expand(value.shape)
    if name == "__setitem__":
        index = host(op.args[1])
        codes[index] = new.reshape(new.shape[max(0, new.ndim - codes[index].ndim) :])
    else:
        args, kwargs = [codes, *host(op.args[1:])], host(dict(op.kwargs))
        if name == "masked_scatter" and isinstance(value, Tensor):
            new = new.reshape(-1) if new.ndim == value.ndim else new
        if named in kwargs or len(args) <= place:
            kwargs[named] = new
        else:
            args[place] = new
        function = getattr(torch, name, None) or getattr(torch.Tensor, name)
        codes = function(*args, **kwargs)
    m = before if before is not None else written
    assert m is not None
    return [m.derived(squeezed(adopted(codes, op.samples, alone=False)))]


def _laid(m: Map | None, shape: torch.Size) -> Tensor:
    codes = torch.tensor(NONE, dtype=torch.int32) if m is None else m.codes
    return codes.expand(shape)


@rule("index_add scatter_add scatter_reduce index_reduce")
def accumulate(op: Op) -> Found | None:
    """Parts of a tensor added to: terms of several samples make a SUM there."""
    name, target = stem(op.name), op.args[0]
    put, by_index = name == "index_put", name.startswith("index")
    source = op.get(2, "values") if put else op.get(3, "source" if by_index else "src")
    before, written = op.first, op.map_of(source)
    if before is None and written is None:
        return op.every(None)
    if not isinstance(source, Tensor):
        return op.every(before)
    axis = 0 if put else op.get(1, "dim") % max(target.ndim, 1)
    index = _one_index(op.get(1, "indices")) if put else op.get(2, "index")
    if index is None:
        return None
    places, size = index.cpu().long(), list(target.shape)
    base = None if before is None else _laid(before, target.shape)
    codes = _laid(written, source.shape)
    if by_index:
        codes = codes.expand(*target.shape[:axis], index.numel(), *target.shape[axis + 1 :])
        # only the axes along which owners vary, or the index runs
        own = [m.in_front(target.ndim).shape for m in (before, written) if m is not None]
        keep = [i == axis or any(shape[i] > 1 for shape in own) for i in range(target.ndim)]
        cut = tuple(slice(None) if kept else slice(0, 1) for kept in keep)
        codes, base = codes[cut], None if base is None else base[cut]
        size = [n if kept else 1 for n, kept in zip(size, keep, strict=True)]
        places = places.reshape([-1 if i == axis else 1 for i in range(target.ndim)])
        places = places.expand(codes.shape)
    else:
        codes = codes[tuple(slice(0, n) for n in places.shape)]
    linear = name in ("index_add", "scatter_add", "index_put")
    linear = linear or op.get(4, "reduce") in ("sum", "mean")
    found = combined_at(places, codes, axis, size, base, SUM if linear else MIXED)
    m = before if before is not None else written
    assert m is not None
    result = m.derived(squeezed(adopted(found, op.samples, alone=False)))
    if result.low < NONE <= m.low:
        result.why = op.name
    return [result]


def _one_index(indices: Sequence[Tensor | None]) -> Tensor | None:
    """The places along the first axis, where `index_put` is given no more than these."""
    first, *rest = indices
    plain = first is not None and first.dtype != torch.bool and first.ndim == 1
    return first if plain and all(i is None for i in rest) else None
