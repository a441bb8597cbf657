"""Follows owners through a block: every operation's outputs get the maps that their slots have.

A rule knows most operations; what has none, or what its rule calls mixed where masks may keep
samples apart, is asked by exchange; what cannot be asked is UNKNOWN, by name.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.operations import RandomState, outputs_of
from inrun.owners._entered import COLLATES, Entered
from inrun.owners._entries import Entries
from inrun.owners._exchange import exchanged
from inrun.owners._map import MIXED, NONE, UNKNOWN, Map
from inrun.owners._operation import Found, Op, Registered, find, led


class Owners(Entered):
    """Owners of one block's tensors; see `Entered` for its arguments."""

    def __init__(self, entries: Entries, constants: Iterable[int], tables: Iterable[int] = ()):
        super().__init__(entries, constants, tables)
        self.interactions: dict[str, bool] = {}  # and whether gradients pass between samples
        self.by_exchange: set[str] = set()
        self.sums: Callable[[Op, Found], None] | None = None  # sees where sums over samples begin

    def run(
        self, function: Callable[..., Any], name: str, args: Sequence[Any],
        kwargs: Mapping[str, Any], tensors: list[Tensor],
        returning: Callable[[Any], Any] | None = None,
    ) -> tuple[Any, list[Tensor]]:  # fmt: skip
        """Runs an operation; (what it returned, the outputs among it), which have their maps.

        `returning` gives what is returned in the place of what the operation did.
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
        """The operation ran: its outputs, which it returns, get their maps."""
        name = op.name
        written = op.args[0] if name == "__setitem__" else None
        outs = [written] if written is not None else (
            [returned] if isinstance(returned, Tensor) else outputs_of(returned)
        )  # fmt: skip
        if not outs:
            return outs
        op.outs = outs
        if not self.in_model and name in COLLATES and self._collated(op):
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

    @staticmethod
    def _ruled(registered: Registered, op: Op) -> Found | None:
        """What the rule says; nothing where it does not understand how it was called."""
        try:
            return registered.rule(op)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return None  # a call in a form that the rule does not know must not end a training

    def _refined(self, op: Op, found: Found) -> Found:
        """Where a rule says MIXED of clean data, the operation itself may know better."""
        if not any(m is not None and m.has(MIXED) for m in found):
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
        return [
            n if m is not None and m.has(MIXED) else m for m, n in zip(found, better, strict=True)
        ]

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
    return "unknown" if m.has(UNKNOWN) else "mixed" if m.has(MIXED) else "sum"
