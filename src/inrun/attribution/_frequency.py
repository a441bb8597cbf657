"""Which steps are scored, and how many steps each of them stands for.

A step that is not scored costs nothing: no operation is watched and no validation pass is run. The
scored ones are drawn at random, and each is weighted by the inverse of its probability, so that
totals stay unbiased whatever the data's order is. Every process draws the same steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from inrun.distributed import Processes
from inrun.scoring import Windows

SEED = 20_260_229  # of the draws; mixed with the step or window, so that nothing needs to be kept


class Ways(NamedTuple):
    """In which ways a training can be scored beside step by step.

    `halves`: whether validation rows can be split into halves. `windows`: None where there are
    none.
    """

    processes: Processes
    halves: bool = False
    windows: Windows | None = None


class Frequency(ABC):
    """Asked at each step's beginning, in the order of steps.

    `parts`: into how many the validation rows are to be split, where they are not split yet.
    `windowed`: whether the step that was asked of last is one of a scoring window.
    """

    parts = 1
    windowed = False
    _news = ""

    def take_news(self) -> str:
        """What was decided since this was last asked."""
        news, self._news = self._news, ""
        return news

    @abstractmethod
    def weight(self, step: int) -> float:
        """How many steps this one stands for; 0 where it is not scored. Steps count from 1."""

    def describe(self) -> dict[str, Any]:
        """What there is to say of it beside its setting."""
        return {}

    def leave_windows(self) -> bool:
        """Decides against scoring windows; False where steps cannot go without them."""
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave; where nothing is kept there is nothing to do."""
        return


class All(Frequency):
    """Every step; those after the first `exact` in scoring windows, if that is given."""

    def __init__(self, exact: int | None = None):
        self._exact = exact

    def weight(self, step: int) -> float:
        self.windowed = self._exact is not None and step > self._exact
        return 1.0


class OneInEach(Frequency):
    """One random step of each n that follow each other: the draws are spread evenly."""

    def __init__(self, n: int):
        self._n = n

    def weight(self, step: int) -> float:
        window, place = divmod(step - 1, self._n)
        return float(self._n) if place == draw(window, self._n) else 0.0


class Coin(Frequency):
    """Each step by itself, with one probability."""

    def __init__(self, probability: float):
        self._probability = probability

    def weight(self, step: int) -> float:
        scored = Random(SEED + step).random() < self._probability
        return 1 / self._probability if scored else 0.0


def draw(window: int, n: int) -> int:
    """Which of n places, 0 to n - 1, drawn for this window of steps."""
    return Random(SEED + window).randrange(n)
