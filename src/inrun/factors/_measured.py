"""Mean squares of a step's contributions, and how the host comes to read them.

Letters: B samples, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Rows = list[list[float]]


def mean_square(values: Sequence[Tensor]) -> Tensor | None:
    """(K,) over the samples of values (B, K); None where there are none."""
    flat = [v for v in values if v.numel()]
    if not flat:
        return None
    narrow = flat[0].device.type == "mps"  # it has no doubles
    return torch.cat(flat).to(torch.float32 if narrow else torch.float64).square().mean(0)


def total(squares: Sequence[Tensor | None]) -> Tensor:
    """The sum of those that are there."""
    found = [t for t in squares if t is not None]
    return torch.stack([t.to(found[0].device) for t in found]).sum(0)


class Waiting(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[Tensor]:
        """Them, on the CPU."""


Reader = Callable[[Tensor], Waiting]
"""Sends a tensor to the host, for reading it when there is other work for the device."""


class Numbers:
    """A step's mean squares, for the host to read.

    Args:
        whole: of all contributions, (K,).
        sizes: of some parameters' contributions, (K,) each.
        wrong: of what is wrong in some, (K,) each.
        seen: energies and what is missed of them, (2, K) each.
        reader: how they get to the host; None where they are read at once.
    """

    def __init__(
        self,
        whole: Tensor,
        sizes: Sequence[Tensor | None],
        wrong: Sequence[Tensor | None],
        seen: Sequence[Tensor | None],
        reader: Reader | None,
    ):
        self._sizes, self._wrong = len(sizes), len(wrong)
        rows = [whole, *sizes, *wrong, *(row for two in seen if two is not None for row in two)]
        there = torch.stack([t.to(whole.device, whole.dtype) for t in rows if t is not None])
        self._sent = there if reader is None else reader(there)

    def read(self) -> tuple[list[float], Rows, Rows, list[Rows]]:
        """Of all contributions; of each size; of each difference; of what each saw."""
        there = self._sent if isinstance(self._sent, Tensor) else self._sent.wait()[0]
        rows: Rows = there.tolist()
        first, last = 1 + self._sizes, 1 + self._sizes + self._wrong
        seen = rows[last:]
        pairs = [seen[i : i + 2] for i in range(0, len(seen), 2)]
        return rows[0], rows[1:first], rows[first:last], pairs
