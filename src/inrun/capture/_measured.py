"""Gradients along their random directions, with their norms, as numbers on the host.

`Ended` is what the gradient check records when a block ends; `Rows` are numbers on their way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.capture._probe import Probes, is_small
from inrun.capture._reading import Reading
from inrun.distributed import Processes, is_sharded, parts


class Measuring:
    """Takes gradients down now, and reads them later; of sharded parameters of all processes."""

    def __init__(self, parameters: Mapping[str, Tensor], probes: Probes, processes: Processes):
        self._parameters, self._probes, self._processes = dict(parameters), probes, processes
        self._grouped: tuple[list[str], list[list[str]]] = [], []  # names, which are mostly those

    @torch.no_grad()
    def measure(self, gradients: Mapping[str, Tensor]) -> Rows:
        """Probe and norm of each gradient; of sharded parameters this process's part."""
        names = list(gradients)
        if names != self._grouped[0]:
            self._grouped = names, self._groups(names)
        rows = [self._probes.of_gradients(group, gradients) for group in self._grouped[1]]
        return Rows.of(list(zip(self._grouped[1], rows, strict=True)))

    def _groups(self, names: list[str]) -> list[list[str]]:
        """Small parameters of one shape and place together, each other one by itself."""
        alike: dict[object, list[str]] = {}
        for name in names:
            p = self._parameters[name]
            alike.setdefault(
                (p.shape, self._probes.places[name]) if is_small(p) else name, []
            ).append(name)
        return list(alike.values())

    def read(self, found: Rows) -> Found:
        """The same as numbers, of the whole parameters."""
        whole = {name: self._parameters[name] for name in found.names}
        cut = {name: parts(p) for name, p in whole.items() if is_sharded(p)}
        if cut:
            (rows,) = found.reading.wait()
            rows = self._summed(rows, torch.tensor([cut.get(name, 0) for name in found.names]))
            found = Rows(found.names, Reading(rows))
        return Found({name: Measured(*row) for name, row in found.read().items()})

    def _summed(self, rows: Tensor, cut: Tensor) -> Tensor:
        """Parts' probes and norms as those of the whole, where a parameter is cut at all."""
        squared = torch.stack((rows[:, 0], rows[:, 1].square()), 1)
        whole = self._processes.mean(squared) * cut.unsqueeze(1)
        whole[:, 1] = whole[:, 1].sqrt()
        return torch.where((cut > 0).unsqueeze(1), whole, rows)


class Measured(NamedTuple):
    """A gradient along its random direction, and its norm."""

    probe: float
    norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.probe) and math.isfinite(self.norm)


class Found(dict[str, Measured]):
    """Gradients by name, which are not changed any more.

    `finite`: whether all numbers are. `largest`: of the norms that are.
    """

    @cached_property
    def finite(self) -> bool:
        return all(map(math.isfinite, chain.from_iterable(self.values())))

    @cached_property
    def largest(self) -> float:
        """The largest norm that is finite; 0 where there is none."""
        if self.finite:
            return max((norm for _, norm in self.values()), default=0.0)
        return max((m.norm for m in self.values() if m.is_finite), default=0.0)


class Summed(NamedTuple):
    """Along the random direction: the sum of shares, and the sum of their sizes.

    What belongs to no sample is in both; `owned` is 0 where there is nothing else.
    """

    total: float
    size: float
    owned: float = 1.0

    def __add__(self, other: object) -> Summed:
        assert isinstance(other, Summed)
        return Summed(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Summed(0.0, 0.0, 0.0)


class Rows(NamedTuple):
    """Numbers by parameter name, one row each, on their way from the device."""

    names: list[str]
    reading: Reading

    @classmethod
    def of(cls, groups: Sequence[tuple[Sequence[str], Tensor]]) -> Rows:
        """Of names and their numbers, (P, 2) float64, a group each."""
        names = [name for group, _ in groups for name in group]
        rows = [numbers for _, numbers in groups]
        empty = torch.zeros(0, 2, dtype=torch.float64)
        return cls(names, Reading(torch.cat(rows) if rows else empty))

    def read(self) -> dict[str, list[float]]:
        """The numbers; those of one name are added up."""
        (rows,) = self.reading.wait()
        found: dict[str, list[float]] = {}
        for name, row in zip(self.names, rows.tolist(), strict=True):
            before = found.get(name)
            found[name] = (
                row if before is None else [a + b for a, b in zip(before, row, strict=True)]
            )
        return found


Versions = dict[str, tuple[int, int]]


def versions_of(gradients: Mapping[str, Tensor]) -> Versions:
    """What tells whether something wrote to a gradient, or put another in its place."""
    return {name: (id(g), g._version) for name, g in gradients.items()}


class Ended(NamedTuple):
    """A block that was not compared yet: its shares' sums, gradients, and names with shares.

    `unowned`: its gradient belongs to no sample.
    """

    sums: Rows
    gradients: Rows
    present: set[str]
    low_precision: bool
    skipped: Mapping[str, str]
    reduced: bool
    versions: Versions
    unowned: bool

    def summed(self) -> dict[str, Summed]:
        owned = 0.0 if self.unowned else 1.0
        rows = self.sums.read()
        return {name: Summed(total, size, owned) for name, (total, size) in rows.items()}
