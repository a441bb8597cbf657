"""Entries by index: `x[i]`, `gather`, tables that are read, distinct values.

Maps depend on data and are made anew each time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.owners._map import MIXED, NONE, Map, combined_at, compressed, squeezed
from inrun.owners._operation import Found, Op, rule, rule_of_first
from inrun.owners.moves import host


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
    if m is None:  # a table that is the same for all, of whose entries samples take their own
        own = op.map_of(index)
        if own is None:
            return [None]
        shape = [1] * op.out.ndim
        shape[axis] = own.codes.numel()
        return [own.derived(own.codes.reshape(shape))]
    if m.shape[axis] == 1:
        return [m]
    return [m.derived(squeezed(m.codes.index_select(axis, index.cpu())))]


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
        return [op.map_of(index)]
    axis %= x.ndim
    if m.shape[axis] == 1 and all(
        s == 1 or s == o for s, o in zip(m.shape, op.out.shape, strict=True)
    ):
        return [m]
    by = torch.take_along_dim if named else torch.gather
    at = (index.cpu(), axis) if named else (axis, index.cpu())
    return [m.derived(squeezed(by(m.codes.expand(x.shape), *at)))]


@rule("masked_select take")
def select_flat(op: Op) -> Found | None:
    """Entries in a row, by a mask or by their number."""
    if len(op.args) < 2:
        return None
    m, (x, by) = op.first, op.args[:2]
    if op.name == "take":
        if m is None:
            return op.every(op.map_of(by))
        return [m.derived(squeezed(m.codes.expand(x.shape).take(by.cpu())))]
    if m is None:  # the same for all, read by the samples' own numbers
        m, x = op.map_of(by), by
        if m is None:
            return op.every(None)
    shape = torch.broadcast_shapes(*(t.shape for t in op.args[:2]))
    codes = m.codes.expand(x.shape).expand(shape)
    return [m.derived(squeezed(codes[by.cpu().expand(shape)]))]


@rule_of_first("embedding one_hot")
def embedding(op: Op, m: Map) -> Found:
    """Rows of a table, or of the unit matrix: a new last axis."""
    return [m.remembered("unsqueeze", lambda: m.derived(m.codes.unsqueeze(-1)))]


@rule_of_first("unique _unique2 unique_consecutive")
def unique(op: Op, m: Map) -> Found | None:
    """Distinct values: an owner where one sample alone has the value."""
    x = op.args[0]
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
    codes = spread_owners(back.flatten(), own.flatten(), distinct)
    shape = [1] * op.out.ndim
    shape[axis or 0] = distinct
    maps: Found = [Map(squeezed(codes.reshape(shape)), op.name, m.how)]
    for out in op.outs[1:]:
        whole = out.shape == x.shape
        maps.append(m.derived(m.codes) if whole and axis is None else None)
    return maps


def spread_owners(places: Tensor, owners: Tensor, length: int) -> Tensor:
    """Owners of what several slots were put together into, (length,): MIXED where of several.

    `places` (n,) of each slot in the result, `owners` (n,) of each slot.
    """
    owners = torch.where(owners < NONE, MIXED, owners)
    return combined_at(places, owners, 0, [length], None, MIXED)
