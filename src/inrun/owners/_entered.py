"""Which map a tensor has that enters a block, or a batch that is made there before the model.

Nothing is guessed from a shape: see `_entries`. A batch that is put together of its samples inside
the block (`stack`, `cat`, rows that are written one by one) enters when it is complete, in the
order of the ids; but rows of a batch that is known stay their samples', in whatever order.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.owners._entries import Entries
from inrun.owners._map import NONE, UNKNOWN, Map, uniform
from inrun.owners._operation import Found, Op, names
from inrun.owners._table import Table

_MISSING = object()
_RAW = object()  # data without an axis of the batch: what is cut out of it may have one
_KEEPS_RAW = names(
    "__getitem__ index_select to float double half bfloat16 long int contiguous view reshape "
    "unsqueeze squeeze transpose permute narrow select chunk split unbind stack cat concat "
    "tensor as_tensor asarray pad clone detach cuda cpu flatten unflatten div mul sub add "
    "__truediv__ __mul__ __sub__ __add__ __rsub__ __radd__ __rmul__ type"
)
_MAKES_DATA = names(  # outside of the model: a batch is made there, or noise for each sample
    "tensor as_tensor asarray scalar_tensor rand randn randint normal bernoulli"
)
COLLATES = names("stack cat concat pad_sequence __setitem__ copy_")
_WHOLE = (Ellipsis, slice(None))


class Entered:
    """Maps of a block's tensors, as far as they do not come of an operation's rule.

    `constants` are ids of tensors that are the same for all samples, `tables` of those that are no
    part of the model: outside of it, batches are cut out of them, where training and validation
    data lie in one tensor.
    """

    def __init__(self, entries: Entries, constants: Iterable[int], tables: Iterable[int] = ()):
        self.entries, self._constants = entries, set(constants)
        self._tables = frozenset(tables)
        self.samples = entries.owned.samples
        self._table = Table()
        self._began = _sequence_number()
        self.in_model = False
        self._made: set[int] = set()  # ids of maps of batches that were made in the block
        self._cuts: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # data, and what it is cut of
        self._filled: dict[int, tuple[weakref.ref[Tensor], dict[int, Any]]] = {}  # row by row
        self.entered: list[Tensor] | None = None  # data that enters, where somebody asks
        self.by_entry: list[Tensor] | None = None  # data whose map entries gave, the same
        self.unknown: set[str] = set()

    def of(self, t: Tensor) -> Map | None:
        """The map of a tensor; None where it is the same for all samples."""
        found = self._entry(t)
        return None if found is _RAW else found

    def _entry(self, t: Tensor) -> Any:
        found = self._table.get(t, _MISSING)
        if found is not _MISSING:
            return found
        if id(t) in self._constants or isinstance(t, torch.nn.Parameter):
            return _RAW if id(t) in self._tables and not self.in_model else None
        found = self._enter(t)
        self._table.put(t, found)
        return found

    def _enter(self, t: Tensor) -> Any:
        """A tensor that nobody has seen: data that enters, or what was computed out of sight."""
        node = t.grad_fn
        if node is not None and (self._began is None or node._sequence_nr() >= self._began):
            name = node.name().removesuffix("0").removesuffix("Backward") or node.name()
            self.unknown.add(name)
            return uniform(UNKNOWN, t.ndim, f"{name}, computed out of sight")
        if torch._C._functorch.is_functorch_wrapped_tensor(t) or t.is_nested:
            what = "a nested tensor" if t.is_nested else "a tensor of torch.func"
            return Map(torch.tensor(UNKNOWN, dtype=torch.int32), what)
        if self.entered is not None:
            self.entered.append(t)
        return self._raw_or_given(t)

    def _raw_or_given(self, t: Tensor) -> Any:
        found = self._given(t)
        return _RAW if found is None else found

    def _given(self, t: Tensor) -> Map | None:
        found = self.entries.map_of(t)
        if found is not None and self.by_entry is not None:
            self.by_entry.append(t)
        return found

    def give(self, t: Tensor, m: Map | None) -> None:
        """Says whose a tensor is, whatever its shape said where it entered."""
        self._table.put(t, m)
        if self.by_entry is not None:
            self.by_entry = [other for other in self.by_entry if other is not t]

    def is_data(self, t: Tensor) -> bool:
        """Whether a tensor entered as data without an axis of the batch."""
        return self._entry(t) is _RAW

    def _end_without(self, op: Op) -> None:
        """Nothing in it was any sample's: neither is the result, unless it is cut out of data."""
        raw = any(self._entry(t) is _RAW for t in op.tensors)
        data = (op.name in _KEEPS_RAW and raw) or (op.name in _MAKES_DATA and not self.in_model)
        for out in op.outs:
            if op.tensors and out is op.tensors[0]:
                continue  # returned as it was
            if data and out.grad_fn is None and not out.requires_grad:
                self._table.put(out, self._raw_or_given(out))
            elif id(out) not in self._constants:
                self._table.put(out, None)

    def _collated(self, op: Op) -> bool:
        """Whether a batch was made of its samples here, before the model: then it enters now.

        Its rows are samples in their order, whatever the parts' own axes may have looked like;
        but rows of a batch that is known are its samples', and stay so in another order.
        """
        if any(t.requires_grad for t in op.tensors):
            return False
        out = op.outs[0]
        axis = None
        if op.name in ("__setitem__", "copy_"):
            written, out = out, out if out._base is None else out._base
            before = self._table.get(out, None)
            known = isinstance(before, Map)
            if known and id(before) not in self._made:  # it is no batch that was made in the block
                return False
            if known and out is not written:
                return bool(before.ndim == out.ndim)
            index = op.args[1] if op.name == "__setitem__" else None
            row = index[0] if isinstance(index, tuple) and index else index
            if isinstance(row, int):
                if self._fills_in_order(out, row % len(out), op.args[2], whole=row is index):
                    return True
            elif known:
                return False
        else:
            if len(op.args[0]) != self.samples:
                return op.name == "pad_sequence" and self._enters(out, None)
            if self._moves(op.args[0], range(self.samples)):
                return False
            axis = _made_along(op)
        return self._enters(out, axis)

    def _enters(self, out: Tensor, axis: int | None) -> bool:
        given = self.entries.owned.given
        found = self._given(out) if axis is None or given else self.entries.along(out.ndim, axis)
        if found is None:
            return False
        self._table.put(out, found)
        self._made.add(id(found))
        return True

    def _fills_in_order(self, out: Tensor, place: int, value: Any, *, whole: bool) -> bool:
        """Whether a tensor is filled with rows of one known batch, in another order than its own.

        Then its rows so far get their owners. One row alone does not tell.
        """
        if id(out) not in self._filled or self._filled[id(out)][0]() is not out:
            self._filled[id(out)] = weakref.ref(out), {}
        rows = self._filled[id(out)][1]
        rows[place] = value if whole else None
        if len(rows) < 2 or not self._moves(list(rows.values()), list(rows)):
            return False
        codes = torch.full((len(out), *[1] * (out.ndim - 1)), NONE, dtype=torch.int32)
        for at, row in rows.items():
            m = self.of(row)
            assert m is not None
            codes[at] = m.low
        self.give(out, Map(codes))
        return True

    def _moves(self, parts: Sequence[Any], places: Iterable[int]) -> bool:
        """Whether rows of a batch that is known come to other places than theirs and their ids'."""
        ids = self.entries.owned.ids
        if self.entries.owned.given:
            return False
        batches: set[int] = set()
        moves = False
        for part, place in zip(parts, places, strict=True):
            cut = self._cuts.get(id(part))
            if cut is None or cut[0]() is not part or not isinstance(part, Tensor):
                return False
            m = self.of(part)
            if m is None or not m.owned or m.varying:
                return False
            batches.add(cut[1])
            named = ids is not None and -len(ids) <= place < len(ids) and ids[place] == m.low
            moves = moves or (m.low != place and not named)
        return moves and len(batches) == 1  # each of a tensor of its own: that is the sample

    def _placed(self, op: Op, found: Found) -> Found:
        """With `slots=`, numbers that were made of several samples' lie where the slots say.

        Positions within packed documents, for instance, made by comparing neighbours.
        """
        slots = self.entries.owned.slots
        if slots is None or all(m is None or m.low >= NONE for m in found):
            return found
        return [
            m
            if m is None or m.low >= NONE or out.requires_grad
            or out.shape[: slots.ndim] != slots.shape
            else self.entries.map_of(out) or m
            for out, m in zip(op.outs, found, strict=True)
        ]  # fmt: skip

    def _looked_up_by_ids(self, op: Op) -> Found | None:
        """`data[ids]`, where data has as many rows as there are ids: row j is sample ids[j]'s.

        By the rows' order it would be the sample of row ids[j]; nobody means that.
        """
        ids = self.entries.owned.ids
        if ids is None:
            return None
        index = op.get(2, "index") if op.name == "index_select" else op.args[1]
        if isinstance(index, tuple) and index and all(p in _WHOLE for p in index[1:]):
            index = index[0]
        values = index.tolist() if hasattr(index, "tolist") and index.ndim == 1 else index
        if not isinstance(values, list) or tuple(values) != ids:
            return None
        found = self._given(op.outs[0])
        return None if found is None else [found]


def _made_along(op: Op) -> int | None:
    """The axis along which a batch was put together of its samples, one at each place."""
    if op.name == "pad_sequence":
        return 0 if op.get(1, "batch_first", False) else 1
    if op.name == "stack" and all(m is None for m in op.maps):  # else parts may be columns
        return int(op.get(1, "dim", 0)) % op.outs[0].ndim
    return None


def _sequence_number() -> int | None:
    """The number that the next node of the graph will have, in this thread."""
    with torch.enable_grad():
        node = (torch.zeros((), requires_grad=True) * 1).grad_fn
    return None if node is None else node._sequence_nr()
