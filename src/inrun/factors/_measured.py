"""Mean squares of a step's contributions, and how the host comes to read them.

Letters: B samples, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


class Numbers:
    """A step's mean squares, for the host to read: at once from the CPU, else when they are there.

    Args:
        whole: of all contributions, (K,).
        sizes: of some parameters' contributions, (K,) each.
        wrong: of what is wrong in some, (K,) each.
        seen: energies and what is missed of them, (2, K) each.
    """

    def __init__(
        self,
        whole: Tensor,
        sizes: Sequence[Tensor | None],
        wrong: Sequence[Tensor | None],
        seen: Sequence[Tensor | None],
    ):
        self._sizes, self._wrong = len(sizes), len(wrong)
        rows = [whole, *sizes, *wrong, *(row for two in seen if two is not None for row in two)]
        there = torch.stack([t.to(whole.device, whole.dtype) for t in rows if t is not None])
        self.on_the_host = there.device.type == "cpu"
        self._event: torch.cuda.Event | None = None
        if there.device.type == "cuda":
            room = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            self._sent = room.copy_(there, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(there.device))
        else:
            self._sent = there

    def _rows(self) -> list[list[float]]:
        if self._event is not None:
            self._event.synchronize()
        found: list[list[float]] = self._sent.tolist()
        return found

    def read(self) -> tuple[list[float], list[list[float]], list[list[float]]]:
        """Of all contributions; of each size; of each difference."""
        rows, end = self._rows(), 1 + self._sizes
        return rows[0], rows[1:end], rows[end : end + self._wrong]

    def seen(self) -> list[list[list[float]]]:
        """Energies, and what is missed of them, of each."""
        rows = self._rows()[1 + self._sizes + self._wrong :]
        return [rows[i : i + 2] for i in range(0, len(rows), 2)]
