"""When the loss counts: at the end of each window, or at several times along the whole run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from inrun.errors import MisuseError


class Horizon(ABC):
    """Which states' losses count, and where a new window begins. Stateless."""

    @abstractmethod
    def begins_anew(self, state: int) -> bool:
        """Whether nothing that comes after this state counts for what came before it."""

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether only the run's last state counts."""

    @abstractmethod
    def weight(self, state: int) -> float:
        """What the loss at this state counts."""


class Windows(Horizon):
    """The run cut at multiples of `length` and at its end; each step looks to its window's end.

    A length of 1 is the step's own effect, None the effect on the run's last state.
    """

    def __init__(self, length: int | None, steps: int):
        if length is not None and length < 1:
            raise MisuseError(f"horizon is {length}; it counts steps, at least 1, None for all.")
        self._length, self._steps = length or max(1, steps), steps

    def begins_anew(self, state: int) -> bool:
        """See `Horizon.begins_anew`."""
        return state % self._length == 0 or state == self._steps

    @property
    def whole(self) -> bool:
        """See `Horizon.whole`."""
        return self._length >= self._steps

    def weight(self, state: int) -> float:
        """See `Horizon.weight`."""
        return float(self.begins_anew(state))


class Curve(Horizon):
    """A weighted sum of the validation loss at chosen states of the whole run."""

    def __init__(self, weights: Mapping[int, float], steps: int):
        outside = [s for s in weights if not 1 <= s <= steps]
        if outside or not weights:
            raise MisuseError(
                f"curve names the states {outside or 'of nothing'}; the run has the states 1 to "
                f"{steps}, each the one after that many steps."
            )
        self._weights, self._steps = dict(weights), steps

    def begins_anew(self, state: int) -> bool:
        """Only at the end."""
        return state == self._steps

    @property
    def whole(self) -> bool:
        """See `Horizon.whole`."""
        return set(self._weights) == {self._steps}

    def weight(self, state: int) -> float:
        """See `Horizon.weight`."""
        return self._weights.get(state, 0.0)
