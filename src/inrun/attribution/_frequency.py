"""Which steps are scored, and how many steps each of them stands for.

A step that is not scored costs nothing: no operation is watched and no validation pass is run. The
scored ones are drawn at random, and each is weighted by the inverse of its probability, so that
totals stay unbiased whatever the data's order is. Every process draws the same steps.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from random import Random
from statistics import median
from typing import Any

import torch

from inrun.distributed import Processes

SEED = 20_260_229  # of the draws; mixed with the step or window, so that nothing needs to be kept
REMEMBERED = {True: 9, False: 24}  # scored and other steps whose times are looked at
UNUSUAL = 12  # first steps, which are not timed: Adam's first are smoothed, ranks are on trial
GROWTH = 4  # times that a window may be longer than the one before: it times one scored step
MOST = 1000  # steps that one scored step may stand for


class Frequency(ABC):
    """Asked at each step's beginning, in the order of steps.

    `parts`: into how many the validation rows are to be split, where they are not split yet.
    """

    sampled = True
    parts = 1

    @abstractmethod
    def weight(self, step: int) -> float:
        """How many steps this one stands for; 0 where it is not scored. Steps count from 1."""

    def describe(self) -> dict[str, float]:
        """What there is to say of it beside its setting."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave; where nothing is kept there is nothing to do."""
        return


class All(Frequency):
    """Every step."""

    sampled = False

    def weight(self, step: int) -> float:
        """Always 1: each step stands for itself."""
        return 1.0


class OneInEach(Frequency):
    """One random step of each n that follow each other: the draws are spread evenly."""

    def __init__(self, n: int):
        self._n = n

    def weight(self, step: int) -> float:
        """That n in the one step of each n that was drawn; 0 in the others."""
        window, place = divmod(step - 1, self._n)
        return float(self._n) if place == _draw(window, self._n) else 0.0


class Coin(Frequency):
    """Each step by itself, with one probability."""

    def __init__(self, probability: float):
        self._probability = probability

    def weight(self, step: int) -> float:
        """One over the probability where the draw fell on this step; else 0."""
        scored = Random(SEED + step).random() < self._probability
        return 1 / self._probability if scored else 0.0


class WithinBudget(Frequency):
    """One random step of each n, n chosen so that scoring adds no more than a share of the time.

    If the share does not allow every step, validation passes look at half of the rows each before
    steps are left out: a scored step's opening and closing pass together still see all of them.

    The time from one step's beginning to the next is taken of scored and of other steps, and n is
    the smallest with (scored / other - 1) / n within the share. It begins with n = 2, to see both,
    and is chosen anew for each window, from steps before it: the draws stay unbiased.

    Args:
        share: of the training's time that scoring may add.
        processes: whose times are averaged, so that all of them choose the same.
        halves: whether validation rows can be split into halves.
    """

    def __init__(self, share: float, processes: Processes, halves: bool = False):
        self._share, self._processes, self._halves = share, processes, halves
        self._n, self._begins, self._place = 2, 1, _draw(0, 2)
        self._times: dict[bool, deque[float]] = {
            scored: deque(maxlen=length) for scored, length in REMEMBERED.items()
        }
        self._began: tuple[int, bool, float] | None = None

    def weight(self, step: int) -> float:
        """The present n in the one step of each n that was drawn; 0 in the others."""
        self._time(step)
        if step >= self._begins + self._n:
            self._begins, self._n = step, self._choice()
            self._place = _draw(step, self._n)
        scored = step - self._begins == self._place
        if self._began is None or self._began[0] != step:
            self._began = (step, scored, time.perf_counter())
        return float(self._n) if scored else 0.0

    def _time(self, step: int) -> None:
        """Takes the time of the step before, where this one follows it."""
        if self._began is not None and self._began[0] == step - 1 >= UNUSUAL:
            self._times[self._began[1]].append(time.perf_counter() - self._began[2])

    @property
    def extra(self) -> float | None:
        """What scoring adds to a step's time, as a share of it; None before it was seen."""
        scored, other = self._times[True], self._times[False]
        if len(scored) < 3 or len(other) < 3:
            return None
        found = torch.tensor([median(scored), median(other)], dtype=torch.float64)
        times: list[float] = self._processes.mean(found).tolist()
        return max(0.0, times[0] / times[1] - 1)

    def _choice(self) -> int:
        extra = self.extra
        if extra is None:
            return self._n
        if extra > self._share and self._halves and self.parts == 1:
            self.parts = 2
            self._times[True].clear()  # they took longer
            return self._n
        return min(MOST, GROWTH * self._n, max(1, math.ceil(extra / self._share)))

    def describe(self) -> dict[str, float]:
        """The budget, what it led to, and what it is expected to cost."""
        extra = self.extra
        told = {"budget": self._share, "every": float(self._n), "parts": float(self.parts)}
        return told if extra is None else {**told, "extra": extra, "expected": extra / self._n}

    def state(self) -> dict[str, Any]:
        """The draw under way and the times that were taken."""
        times = {str(int(scored)): list(seen) for scored, seen in self._times.items()}
        return {
            "n": self._n, "begins": self._begins, "place": self._place, "times": times,
            "parts": self.parts,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with the draw and the times of a checkpoint."""
        self._n, self._begins, self._place = state["n"], state["begins"], state["place"]
        self.parts = state["parts"]
        for scored, seen in self._times.items():
            seen.clear()
            seen.extend(state["times"][str(int(scored))])
        self._began = None


def _draw(window: int, n: int) -> int:
    return Random(SEED + window).randrange(n)
