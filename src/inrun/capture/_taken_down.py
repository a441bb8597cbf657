"""What the gradient check takes down when a block ends and before a step, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.capture._reading import Reading


class Measured(NamedTuple):
    """A gradient along its random direction, and its norm."""

    probe: float
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether both are numbers."""
        return math.isfinite(self.probe) and math.isfinite(self.norm)


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
    """Numbers by parameter name, a row each, on their way from the device."""

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
    versions: Mapping[str, tuple[int, int]]
    unowned: bool = False

    def summed(self) -> dict[str, Summed]:
        """Shares' sums, by parameter name."""
        owned = 0.0 if self.unowned else 1.0
        rows = self.sums.read()
        return {name: Summed(total, size, owned) for name, (total, size) in rows.items()}
