"""Follows owners through a block: every operation's outputs get the maps that their slots have.

A rule knows most operations; what has none, or what its rule calls mixed where masks may keep
samples apart, is asked by exchange; what cannot be asked is UNKNOWN, by name. Nothing is guessed
from a shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.operations import RandomState, outputs_of
from inrun.owners._entries import Entries
from inrun.owners._exchange import exchanged
from inrun.owners._map import MIXED, NONE, UNKNOWN, Map, uniform
from inrun.owners._operation import Found, Op, is_mixed, led
from inrun.owners._registry import Registered, find, names
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
_COLLATES = names("stack cat concat pad_sequence __setitem__ copy_")
_WHOLE = (Ellipsis, slice(None))


class Owners:
    """Owners of one block's tensors.

    Args:
        entries: of data that enters.
        constants: ids of tensors that are the same for all samples.
        tables: ids of those that are no part of the model: outside of it, batches are cut out of
            them, where training and validation data lie in one tensor.
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
        self.interactions: dict[str, bool] = {}  # and whether gradients pass between samples
        self.by_exchange: set[str] = set()
        self.unknown: set[str] = set()
        self.sums: Callable[[Op, Found], None] | None = None  # sees where sums over samples begin

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

    # ---- one operation

    def run(
        self, function: Callable[..., Any], name: str, args: Sequence[Any],
        kwargs: Mapping[str, Any], tensors: list[Tensor],
        returning: Callable[[Any], Any] | None = None,
    ) -> tuple[Any, list[Tensor]]:  # fmt: skip
        """Runs an operation; (what it returned, the outputs among it), which have their maps.

        Args:
            function: the operation.
            name: its name.
            args: its arguments.
            kwargs: those that were named.
            tensors: among them.
            returning: what is returned in the place of what the operation did.
        """
        m = None if kwargs else self._kept(function, name, tensors)
        op = self.begin(function, name, args, kwargs, tensors) if m is None else None
        returned = function(*args, **kwargs)
        if returning is not None:
            returned = returning(returned)
        if op is None:
            if _is_alike(returned, m, tensors):
                self._table.put(returned, m)
                return returned, [returned]
            op = self.begin(function, name, args, kwargs, tensors)
        return returned, self.end(op, returned)

    def _kept(
        self, function: Callable[..., Any], name: str, tensors: Sequence[Tensor]
    ) -> Map | None:
        """The map that the result has too, as of most operations within the model.

        Of entries, or rows, of samples that meet numbers alone, or entries of the same samples;
        what writes to its arguments is not told here.
        """
        if not self.in_model or self.sums is not None or name.endswith("_"):
            return None
        registered = find(function, name)
        if registered is None or not (registered.pointwise or registered.rows):
            return None
        found: Map | None = None
        for t in tensors:
            m = self.of(t)
            if m is None or (m is found and registered.pointwise):
                continue
            if found is not None or m.low < 0:
                return None
            if registered.rows and (t is not tensors[0] or m.shape[-1:] != (1,)):
                return None
            found = m
        return found

    def begin(
        self, function: Callable[..., Any], name: str, args: Sequence[Any],
        kwargs: Mapping[str, Any], tensors: list[Tensor],
    ) -> Op:  # fmt: skip
        """An operation is about to run: its arguments' owners, before it overwrites any."""
        maps = [self.of(t) for t in tensors]
        args, kwargs = led(name, args, kwargs)
        op = Op(function, name, args, kwargs, tensors, maps, [], self.samples)
        op.registered = find(function, name)  # once: every operation comes by here
        if _may_be_asked(op.registered) and any(m is not None for m in maps):
            op.random = RandomState.now(tensors)
        if self.sums is not None:  # before an operation in place gives its argument another node
            op.nodes = [(t.grad_fn, t.output_nr) for t in tensors]
        return op

    def end(self, op: Op, returned: Any) -> list[Tensor]:
        """The operation ran: its outputs get their maps.

        Returns:
            The outputs.
        """
        name = op.name
        written = op.args[0] if name == "__setitem__" else None
        outs = [written] if written is not None else (
            [returned] if isinstance(returned, Tensor) else outputs_of(returned)
        )  # fmt: skip
        if not outs:
            return outs
        op.outs = outs
        if not self.in_model and name in _COLLATES and self._collated(op):
            return outs
        known = [m for m in op.maps if m is not None]
        if not known:
            self._end_without(op)
            return outs
        found = _unmoved(op, known) or self._placed(op, self._found(op))
        if self.sums is not None:
            self.sums(op, found)
        for note in op.interactions:
            self.interactions[note] = True
        if op.by_numbers:
            self.interactions.setdefault(f"{op.name}, by numbers without gradients", False)
        first = outs[0]
        into = op.kwargs.get("out")
        if written is not None or into is first or (op.args and first is op.args[0]):
            self._table.write(first, self.of(first), found[0])
            outs, found = outs[1:], found[1:]
        for out, m in zip(outs, found, strict=True):
            self._table.put(out, m)
            if not self.in_model and not out.requires_grad and op.tensors:
                self._cuts[id(out)] = weakref.ref(out), id(op.tensors[0])
        return op.outs

    def _end_without(self, op: Op) -> None:
        """Nothing in it was any sample's: neither is the result, unless it is cut out of data."""
        raw = any(self._entry(t) is _RAW for t in op.tensors)
        data = (op.name in _KEEPS_RAW and raw) or (op.name in _MAKES_DATA and not self.in_model)
        for out in op.outs:
            if op.tensors and out is op.tensors[0]:
                continue  # returned as it was
            if data and out.grad_fn is None and not out.requires_grad:
                self._table.put(out, self._cut_out(op, out))
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
            known = isinstance(self._table.get(out, None), Map)
            if known and not self._is_entry(out):
                return False
            if known and out is not written:
                return bool(self._table.get(out, None).ndim == out.ndim)
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

    def _is_entry(self, t: Tensor) -> bool:
        """Whether a tensor is a batch that was made in the block."""
        return id(self._table.get(t, None)) in self._made

    def _cut_out(self, op: Op, out: Tensor) -> Any:
        found = self._given(out)
        return _RAW if found is None else found

    def _found(self, op: Op) -> Found:
        if op.outs[0].is_nested:
            self.unknown.add(f"{op.name} of nested tensors")
            why = f"{op.name} of nested tensors"
            return [Map(torch.tensor(UNKNOWN, dtype=torch.int32), why) for _ in op.outs]
        if op.name in ("__getitem__", "index_select") and not self.in_model:
            looked_up = self._looked_up_by_ids(op)
            if looked_up is not None:
                return looked_up
        if op.registered is not None:
            found = self._ruled(op.registered, op)
            if found is not None:
                return self._refined(op, found) if op.registered.refined else found
        return self._asked(op)

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

    @staticmethod
    def _ruled(registered: Registered, op: Op) -> Found | None:
        """What the rule says; nothing where it does not understand how it was called."""
        try:
            return registered.rule(op)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return None  # a call in a form that the rule does not know must not end a training

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

    def _refined(self, op: Op, found: Found) -> Found:
        """Where a rule says MIXED of clean data, the operation itself may know better."""
        if not any(is_mixed(m) for m in found):
            return found
        known = [m for m in op.maps if m is not None]
        key = ("hopeless", op.function, *[id(m) for m in known], op.outs[0].shape)
        if known[0].memo.get(key):
            return found
        better = exchanged(op)
        if better is None or all(
            m is None or n is None or m.low > NONE or _same(m, n)
            for m, n in zip(found, better, strict=True)
        ):
            known[0].memo[key] = True
            known[0].kept += known
            return found
        self.by_exchange.add(op.name)
        op.interactions.clear()
        return [n if is_mixed(m) else m for m, n in zip(found, better, strict=True)]

    def _asked(self, op: Op) -> Found:
        found = exchanged(op)
        if found is None:
            self.unknown.add(op.name)
            return op.unknown()
        self.by_exchange.add(op.name)
        return found


def _unmoved(op: Op, known: Sequence[Map]) -> Found | None:
    """Entries of one tensor that meet numbers alone keep their owners: most operations are so."""
    m = known[0]
    if op.registered is None or not op.registered.pointwise or len(known) > 1 or m.low < 0:
        return None
    alike = len(op.outs) == 1 and m.ndim == op.outs[0].ndim and not op.outs[0].is_nested
    return [m] if alike else None


def _is_alike(returned: Any, m: Map | None, tensors: Sequence[Tensor]) -> bool:
    """Whether a new tensor came out, with the axes of the one whose entries went in."""
    if type(returned) is not Tensor or m is None or returned.ndim != m.ndim or returned.is_nested:
        return False
    return id(returned) not in map(id, tensors)


def _made_along(op: Op) -> int | None:
    """The axis along which a batch was put together of its samples, one at each place."""
    if op.name == "pad_sequence":
        return 0 if op.get(1, "batch_first", False) else 1
    if op.name == "stack" and all(m is None for m in op.maps):  # else parts may be columns
        return int(op.get(1, "dim", 0)) % op.outs[0].ndim
    return None


def _may_be_asked(registered: Registered | None) -> bool:
    """Whether an operation that draws random numbers may be run again."""
    return registered is None or registered.family in ("recurrent", "attention")


def _same(a: Map, b: Map) -> bool:
    """Whether two maps say the same of the same slots."""
    try:
        return bool((a.codes == b.codes).all()) and a.ndim == b.ndim
    except RuntimeError:
        return False


def root_kind(m: Map | None) -> str:
    """What a backward pass starts from: 'sum', 'mixed', 'unknown', or 'none' of any sample."""
    if m is None or m.nobodys:
        return "none"
    codes = m.codes
    if bool((codes == UNKNOWN).any()):
        return "unknown"
    return "mixed" if bool((codes == MIXED).any()) else "sum"


def _sequence_number() -> int | None:
    """The number that the next node of the graph will have, in this thread."""
    with torch.enable_grad():
        node = (torch.zeros((), requires_grad=True) * 1).grad_fn
    return None if node is None else node._sequence_nr()
