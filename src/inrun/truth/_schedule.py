"""Which steps an audit plays out: random ones, spread over the run, as many as the time allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inrun.errors import MisuseError

FIRST_GUESS = 10  # checks to plan for, before one has shown what it costs


class AuditSchedule:
    """Draws one step at random in each of as many windows as the remaining time pays for.

    Args:
        seconds: that may be spent.
        steps: that the audit is spread over; where training goes on for longer, over as many again.
        first: the first step that may be drawn.
        seed: of the draws.
    """

    def __init__(self, seconds: float, steps: int, first: int, seed: int):
        if not seconds > 0 or steps < 1:
            raise MisuseError(
                f"An audit needs time and steps: seconds={seconds}, steps={steps}. Give what it "
                "may take in all, and how many optimizer steps are to come."
            )
        self.seconds, self._steps = seconds, steps
        self.rng, self.seed = np.random.default_rng(seed), seed
        self.spent = 0.0
        self._cost: float | None = None
        self._begins, self._ends = first, first + steps
        self._next = self._draw()

    def wants(self, step: int) -> bool:
        """Whether this step is the one to play out."""
        return self._next is not None and step >= self._next

    def done(self, step: int, seconds: float, next_cost: float | None = None) -> None:
        """Takes note of a check, and draws the next step that the remaining time pays for."""
        self.spent += seconds
        self._cost = next_cost or seconds or self._cost
        self._begins = max(self._begins, step + 1)
        if self._begins >= self._ends:
            self._ends = self._begins + self._steps
        self._next = self._draw()

    def state(self) -> dict[str, Any]:
        return {
            "random": self.rng.bit_generator.state, "spent": self.spent, "cost": self._cost,
            "begins": self._begins, "ends": self._ends, "next": self._next,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rng.bit_generator.state = state["random"]
        self.spent, self._cost = state["spent"], state["cost"]
        self._begins, self._ends = state["begins"], state["ends"]
        self._next = state["next"]

    @property
    def remaining(self) -> float:
        return self.seconds - self.spent

    def _draw(self) -> int | None:
        left = FIRST_GUESS if self._cost is None else self.remaining / self._cost
        if left < 1:
            return None
        window = max(1, int((self._ends - self._begins) / left))
        chosen = self._begins + int(self.rng.integers(window))
        self._begins += window
        return chosen
