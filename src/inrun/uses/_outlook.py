"""What a later validation loss says of the state that the coming step leads to: at any horizon.

One step ahead it is the validation gradient where the step lands. Further ahead the training is
rolled out on a copy, on batches that it is expected to meet, and the gradient is taken back from
there (`inrun.replay.Rollout`). One roll-out serves `every` steps: of the states that it passed, the
gradient is kept for each, so that later steps look to the same end from where they are.

Within a step the chosen candidates move its landing. One step ahead the gradient is then taken anew
there; further ahead it is moved by as much as the validation loss's gradient moves between the
landings, whose curvature stands in for that of the loss at the horizon.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.replay import Carried, Ids, Prospect, Rollout, read_ids
from inrun.utility import Utility

Upcoming = Callable[[int], list[Ids]]
"""`upcoming(n)` gives the ids of the n batches that come after the present one."""


class Drawn:
    """Anticipates batches: draws them from all ids that were chosen so far, as many as last time.

    Before anything was chosen, from the candidates at hand.
    """

    def __init__(self, seed: int):
        self._rows, self._draw = 1, random.Random(seed)
        self._chosen: dict[int | str, None] = {}
        self._at_hand: list[int | str] = []

    def offer(self, candidates: Ids, rows: int) -> None:
        """Takes note of candidates, so many of which will be chosen."""
        self._at_hand, self._rows = list(candidates), rows

    def note(self, chosen: Ids) -> None:
        """Takes note of what was chosen."""
        self._chosen |= dict.fromkeys(chosen)

    def __call__(self, batches: int) -> list[Ids]:
        """That many batches."""
        known = list(self._chosen or dict.fromkeys(self._at_hand))
        rows = min(self._rows, len(known))
        return [read_ids(self._draw.sample(known, rows)) for _ in range(batches)]


class When(NamedTuple):
    """At what distance the loss is read.

    `horizon` in steps, None for the run's end; `every` how many steps one roll-out serves; `steps`
    of the whole run, beyond which there is nothing to look at, None if not known.
    """

    horizon: int | None
    every: int
    steps: int | None

    def length(self, step: int) -> int:
        """How many steps to look ahead from this one."""
        left = None if self.steps is None else max(1, self.steps - step)
        known = [n for n in (self.horizon, left) if n is not None]
        return min(known)


class Outlook(ABC):
    """Where V is read, and how it is brought to the state after the coming step."""

    @abstractmethod
    def after(self, step: int, prospect: Prospect, *, chosen: bool) -> Carried:
        """The gradient of the later loss in the state after the step.

        Args:
            step: the step's number, from 0.
            prospect: the step as it is expected now.
            chosen: whether some of its candidates are chosen by now.
        """


class NextState(Outlook):
    """One step ahead. A utility that was dealt into parts shows another part in every step."""

    def __init__(self, utility: Utility, model: nn.Module, parameters: Mapping[str, Tensor]):
        self._utility, self._model, self._parameters = utility, model, parameters

    def after(self, step: int, prospect: Prospect, *, chosen: bool) -> Carried:
        """See `Outlook.after`."""
        carried = Carried(self._parameters, 1)
        carried.add_to_weights(prospect.landing(self._utility.part(step), self._model))
        return carried


class Ahead(Outlook):
    """Several steps ahead, by roll-outs.

    Args:
        next_state: one step ahead, for how landings differ.
        rollout: of the live training.
        upcoming: the batches that are anticipated.
        when: at what distance.
        moves: whether landings within a step will be asked for.
    """

    def __init__(
        self, next_state: Outlook, rollout: Rollout, upcoming: Upcoming, when: When, *, moves: bool
    ):
        self._next_state, self._rollout, self._upcoming = next_state, rollout, upcoming
        self._when, self._moves = when, moves
        self._plan: list[Carried] = []
        self._began = 0
        self._landing: Carried | None = None

    def after(self, step: int, prospect: Prospect, *, chosen: bool) -> Carried:
        """See `Outlook.after`. A young optimizer's steps are looked at from the next state."""
        if prospect.young:
            return self._next_state.after(step, prospect, chosen=chosen)
        if not 0 <= step - self._began < len(self._plan):
            self._plan, self._began = self._rolled_out(step, prospect), step
        found = self._plan[step - self._began].copy()
        if not self._moves:
            return found
        now = self._next_state.after(step, prospect, chosen=chosen)
        if not chosen:
            self._landing = now
        elif self._landing is not None:
            before = self._landing.weights()
            found.add_to_weights({name: g - before[name] for name, g in now.weights().items()})
        return found

    def _rolled_out(self, step: int, prospect: Prospect) -> list[Carried]:
        length = self._when.length(step)
        batches = self._upcoming(length - 1) if length > 1 else []
        if len(batches) != length - 1:
            raise MisuseError(
                f"upcoming({length - 1}) returned {len(batches)} batches. It must return as many "
                "as it is asked for; pass steps=... so that no look goes past the run's end."
            )
        named = [read_ids(ids) for ids in batches]
        return self._rollout.ahead(prospect.consumed(), named, min(self._when.every, length))
