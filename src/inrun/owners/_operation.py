"""One operation as the rules see it, and the table of rules, by the name of the torch function.

A rule is a function from an `Op` to the maps of its outputs. It gives None where it cannot tell:
then the operation is decided by exchange (see `_exchange`), or else is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from inrun.operations import RandomState
from inrun.owners._map import NONE, UNKNOWN, Map, is_statistic, joined, uniform

Found = list[Map | None]
"""A map for each output, None where it is the same for all samples."""


@dataclass(slots=True)
class Op:
    """An operation that ran.

    `tensors` are those among its arguments, `maps` theirs as they were before it ran; `outs` are
    the tensors that it returned. `by_numbers`: sums over samples were multiplied by several numbers
    that depend on several samples too, without gradients: how often the batch goes to each expert.
    """

    function: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tensors: list[Tensor]
    maps: list[Map | None]
    outs: list[Tensor]
    samples: int
    random: RandomState | None = None  # before it ran, where it may have to draw the same again
    registered: Any = None  # its rule's entry in the table
    interactions: list[str] = field(default_factory=list)
    by_numbers: bool = False
    nodes: list[tuple[Any, int]] = field(default_factory=list)  # of `tensors`, where asked for

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by its place or its name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def map_of(self, t: Any) -> Map | None:
        """The map of an argument."""
        for tensor, m in zip(self.tensors, self.maps, strict=True):
            if tensor is t:
                return m
        return None

    @property
    def first(self) -> Map | None:
        """The map of the first argument, or of the first that is a tensor."""
        if self.args and isinstance(self.args[0], Tensor):
            return self.map_of(self.args[0])
        return self.maps[0] if self.maps else None

    @property
    def out(self) -> Tensor:
        return self.outs[0]

    def every(self, m: Map | None) -> Found:
        return [m] * len(self.outs)

    def unknown(self) -> Found:
        return [uniform(UNKNOWN, out.ndim, self.name) for out in self.outs]

    def join(
        self,
        parts: Sequence[tuple[Tensor, Map | None]],
        *,
        adds: bool = False,
        ndim: int | None = None,
    ) -> Map | None:
        """Owners of what combines these tensors entry by entry.

        Only what carries gradients decides, where anything does: other values are given numbers.
        """
        ndim = self.out.ndim if ndim is None else ndim
        graded = [m for t, m in parts if m is not None and t.requires_grad]
        given = [m for t, m in parts if m is not None and not t.requires_grad]
        main = self._together(graded, ndim, adds=adds, noted=True)
        rest = self._together(given, ndim, adds=adds, noted=False)
        if main is None or rest is None:
            return main if rest is None else rest
        if not main.has(NONE):
            return main
        # the second where the first says that nobody owns a slot
        key = ("filled", id(rest))
        codes = main.codes, rest.codes
        return main.remembered(
            key, lambda: main.derived(torch.where(codes[0] == NONE, codes[1], codes[0])), rest
        )

    def _together(self, maps: Sequence[Map], ndim: int, *, adds: bool, noted: bool) -> Map | None:
        """The join of some of the maps; a number of the whole batch leaves slots their owner."""
        found: Map | None = None
        for m in maps:
            m = m.in_front(ndim)
            if found is None:
                found = m
            elif is_statistic(m, found) or is_statistic(found, m):
                if noted:
                    self.interactions.append(self.name)
                found = found if is_statistic(m, found) else m
            else:
                found = joined(found, m, ndim, adds=adds, why=self.name)
        return found


_LEADING = {"where": "condition", "cat": "tensors", "stack": "tensors", "concat": "tensors"}
_UNLED = frozenset({"polygamma", "bucketize", "searchsorted", "isin"})


def led(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The first argument in its place where it was given by its name: `torch.sum(input=x)`."""
    leading = _LEADING.get(name, "input")
    if args or leading not in kwargs or name in _UNLED:
        return args, kwargs
    rest = {key: value for key, value in kwargs.items() if key != leading}
    return (kwargs[leading],), rest


Rule = Callable[[Op], Found | None]
R = TypeVar("R", bound=Rule)


class Registered(NamedTuple):
    """A rule.

    `refined`: where it says MIXED, an exchange may know better (masks, zeros), and is tried.
    `pointwise`: entries that meet numbers alone keep their owners. `rows`: so do rows of the first
    argument, whose last axis is summed away.
    """

    family: str
    rule: Rule
    refined: bool
    pointwise: bool
    rows: bool


_BY_NAME: dict[str, Registered] = {}
_BY_FUNCTION: dict[Any, Registered] = {}


def rule(
    names: str, *functions: Any, refined: bool = False, pointwise: bool = False,
    rows: bool = False,
) -> Callable[[R], R]:  # fmt: skip
    """Registers a rule for torch functions; see `Registered`.

    Their names are as `func.__name__` says them, separated by blanks; the in-place form (`add_`,
    `__iadd__`) has the same rule. Functions are those that share their name with others, such as
    getters of properties.
    """

    def register(function: R) -> R:
        entry = Registered(function.__name__, function, refined, pointwise, rows)
        _BY_NAME.update(dict.fromkeys(names.split(), entry))
        _BY_FUNCTION.update(dict.fromkeys(functions, entry))
        return function

    return register


def rule_of_first(
    named: str, *functions: Any, refined: bool = False
) -> Callable[[Callable[[Op, Map], Found | None]], Rule]:
    """Registers a rule that asks for the first argument's map, and is asked where there is one."""

    def register(function: Callable[[Op, Map], Found | None]) -> Rule:
        @rule(named, *functions, refined=refined)
        @wraps(function)
        def of_first(op: Op) -> Found | None:
            m = op.first
            return op.every(None) if m is None else function(op, m)

        return of_first

    return register


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def find(function: Callable[..., Any], name: str) -> Registered | None:
    """The rule of an operation, if it has one."""
    found = _BY_FUNCTION.get(function) if name in ("__get__", "unfold") else None
    return found or _BY_NAME.get(name) or _BY_NAME.get(stem(name))


def stem(name: str) -> str:
    """A name without the sign of its in-place form."""
    if name.startswith("__i") and name.endswith("__"):
        return f"__{name[3:]}"
    return name.removesuffix("_") if not name.endswith("__") else name


def families() -> dict[str, list[str]]:
    """Every family of operations with the names that it holds, for the documentation."""
    found: dict[str, list[str]] = {}
    for name, entry in _BY_NAME.items():
        found.setdefault(entry.family, []).append(name)
    return found
