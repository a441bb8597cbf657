"""One operation as the rules see it: what went in, whose it was, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inrun.operations import RandomState
from inrun.owners._map import MIXED, NONE, UNKNOWN, Map, is_statistic, joined, uniform

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
        """The first tensor that came out."""
        return self.outs[0]

    def every(self, m: Map | None) -> Found:
        """The same map for all outputs."""
        return [m] * len(self.outs)

    def unknown(self, why: str = "") -> Found:
        """For all outputs: owners are not known."""
        return [uniform(UNKNOWN, out.ndim, why or self.name) for out in self.outs]

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
        return _filled(main, rest)

    def _together(self, maps: Sequence[Map], ndim: int, *, adds: bool, noted: bool) -> Map | None:
        """The join of some of the maps; a number of the whole batch leaves slots their owner."""
        found: Map | None = None
        for m in maps:
            if found is None:
                found = _axes(m, ndim)
                continue
            m = _axes(m, ndim)
            if is_statistic(m, found) or is_statistic(found, m):
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


def _axes(m: Map, ndim: int) -> Map:
    """The same map with axes of length 1 in front."""
    if m.ndim >= ndim:
        return m
    shape = (1,) * (ndim - m.ndim) + tuple(m.shape)
    return m.remembered(("axes", ndim), lambda: m.derived(m.codes.reshape(shape)))


def _filled(main: Map, rest: Map) -> Map:
    """The first map, and the second where the first says that nobody owns a slot."""
    if NONE not in (main.low, main.high) and not _has(main, NONE):
        return main

    def make() -> Map:
        return main.derived(torch.where(main.codes == NONE, rest.codes, main.codes))

    return main.remembered(("filled", id(rest)), make, rest)


def _has(m: Map, code: int) -> bool:
    return m.low <= code <= m.high and bool((m.codes == code).any())


def is_mixed(m: Map | None) -> bool:
    """Whether samples are mixed in some of its slots."""
    return m is not None and _has(m, MIXED)
