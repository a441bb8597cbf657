"""What `stream` must guess: what will become of a gradient that is still coming in."""

from __future__ import annotations

from collections.abc import Sequence


class Forecast:
    """What `stream` expects to become of a gradient that is still coming in: what did last time.

    A direction that is formed inside the backward pass does not know yet how many micro-batches
    will be added nor by how much the sum will be clipped or unscaled.
    """

    def __init__(self) -> None:
        self.blocks_now = 1
        self._scale, self._blocks = 1.0, 1
        self.error = 0.0

    def learn(self, scale: float, blocks: int) -> None:
        """Takes note of a finished step, and of how far off its forecast was."""
        self.error = abs(self._scale / scale - 1) if scale else 0.0
        self._scale, self._blocks = scale, blocks

    def numbers(self) -> list[float]:
        """What must survive a restart."""
        return [self._scale, self._blocks]

    def take(self, numbers: Sequence[float]) -> None:
        """Takes over what `numbers` gave."""
        self._scale, self._blocks = numbers[0], int(numbers[1])

    def factor(self) -> float:
        """Consumed gradient over the gradient so far."""
        return self._scale * max(1.0, self._blocks / self.blocks_now)
