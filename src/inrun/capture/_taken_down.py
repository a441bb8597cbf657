"""What the gradient check takes down when a block ends and before a step, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

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
    """Shares along the random direction: their sum, and the sum of their sizes."""

    total: float
    size: float


NOTHING = Summed(0.0, 0.0)


class Rows(NamedTuple):
    """Numbers by parameter name, a row each, on their way from the device."""

    names: list[str]
    reading: Reading

    def read(self) -> dict[str, list[float]]:
        (rows,) = self.reading.wait()
        return dict(zip(self.names, rows.tolist(), strict=True))


class Ended(NamedTuple):
    """A block that was not compared yet: its shares' sums, gradients, and names with shares."""

    sums: Rows
    gradients: Rows
    present: set[str]
    low_precision: bool
    skipped: Mapping[str, str]
    reduced: bool


def summed(rows: Rows) -> dict[str, Summed]:
    """Shares' sums, by parameter name."""
    return {name: Summed(*row) for name, row in rows.read().items()}
