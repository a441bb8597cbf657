"""Who of a batch of candidates is trained on: by K-step value, by chance, by loss.

A value needs the gradient of a later validation loss in the state that the coming step leads to.
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
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.optim import rule_for
from inrun.owners import read_ids
from inrun.replay import AnticipatedStep, Carried, Ids, Rollout, Task, undisturbed_random
from inrun.uses._candidates import Candidates
from inrun.utility import Utility

Upcoming = Callable[[int], list[Ids]]
"""`upcoming(n)` gives the ids of the n batches that come after the present one."""


class DrawnBatches:
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


class NextState:
    """One step ahead. A utility that was split into parts shows another part in every step."""

    def __init__(self, utility: Utility, model: nn.Module, parameters: Mapping[str, Tensor]):
        self._utility, self._model, self._parameters = utility, model, parameters

    def after(self, step: int, anticipated: AnticipatedStep, *, chosen: bool) -> Carried:
        """The gradient of the later loss in the state after the step, of number `step` from 0.

        `anticipated` is the step as it is expected now, `chosen` whether some of its candidates are
        chosen by now.
        """
        carried = Carried(self._parameters, 1)
        carried.add_to_weights(anticipated.landing(self._utility.part(step), self._model))
        return carried


class Ahead:
    """Several steps ahead, by roll-outs.

    Args:
        next_state: for how landings differ.
        rollout: of the live training.
        upcoming: the batches that are anticipated.
        horizon: at how many steps' distance the loss is read, None for the run's end.
        every: how many steps one roll-out serves.
        steps: of the whole run, beyond which there is nothing to look at; None if not known.
        moves: whether landings within a step will be asked for.
    """

    def __init__(
        self,
        next_state: NextState,
        rollout: Rollout,
        upcoming: Upcoming,
        horizon: int | None,
        every: int,
        steps: int | None,
        *,
        moves: bool,
    ):
        self._next_state, self._rollout, self._upcoming = next_state, rollout, upcoming
        self._horizon, self._every, self._steps, self._moves = horizon, every, steps, moves
        self._plan: list[Carried] = []
        self._began = 0
        self._landing: Carried | None = None

    def after(self, step: int, anticipated: AnticipatedStep, *, chosen: bool) -> Carried:
        """See `NextState.after`, from which a young optimizer's steps are looked at."""
        if anticipated.young:
            return self._next_state.after(step, anticipated, chosen=chosen)
        if not 0 <= step - self._began < len(self._plan):
            self._plan, self._began = self._rolled_out(step, anticipated), step
        found = self._plan[step - self._began].copy()
        if not self._moves:
            return found
        now = self._next_state.after(step, anticipated, chosen=chosen)
        if not chosen:
            self._landing = now
        elif self._landing is not None:
            before = self._landing.weights()
            found.add_to_weights({name: g - before[name] for name, g in now.weights().items()})
        return found

    def _rolled_out(self, step: int, anticipated: AnticipatedStep) -> list[Carried]:
        left = None if self._steps is None else max(1, self._steps - step)
        length = min(n for n in (self._horizon, left) if n is not None)
        batches = self._upcoming(length - 1) if length > 1 else []
        if len(batches) != length - 1:
            raise MisuseError(
                f"upcoming({length - 1}) returned {len(batches)} batches. It must return as many "
                "as it is asked for; pass Loop(steps=...) so that no look goes past the run's end."
            )
        named = [read_ids(ids) for ids in batches]
        return self._rollout.ahead(anticipated.consumed(), named, min(self._every, length))


class Chosen(NamedTuple):
    """`rows` of the block that are trained on, ascending; `scores` (N,) float64, high for chosen.

    Scores are NaN where nothing was computed.
    """

    rows: list[int]
    scores: Tensor


class Chooser(Protocol):
    """Says who of a block is trained on."""

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """Fills k places, fewer than there are candidates, in the optimizer's step from 0."""


class Look:
    """A look at the step that is about to be made, and at the loss where it is read.

    Args:
        optimizer: that is about to step.
        parameters: the trained ones, by name.
        reading: where the loss is read.
        clip_norm: as the loop clips, or None.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, Tensor],
        reading: NextState | Ahead,
        clip_norm: float | None,
    ):
        self._optimizer, self._rule = optimizer, rule_for(optimizer)
        self._parameters, self._reading, self._clip_norm = parameters, reading, clip_norm

    def at(
        self, candidates: Candidates, rows: list[int], places: int, step: int
    ) -> tuple[AnticipatedStep, dict[str, Tensor]]:
        """The step with these rows chosen, and the later loss's derivative in each share."""
        anticipated = AnticipatedStep(
            self._optimizer, self._rule, self._parameters, candidates.expected(rows, places),
            self._clip_norm,
        )  # fmt: skip
        after = self._reading.after(step, anticipated, chosen=bool(rows))
        return anticipated, anticipated.taken_back(after)


class ByValue:
    """Greedily by K-step value, in rounds.

    The best few get their places; then the step is looked at anew with them in it, and what they do
    already is worth less for the next: through the curvature of the validation loss and through the
    optimizer's own bend. With as many rounds as places it is greedy one by one.

    Args:
        look: at the step.
        rounds: at least 1.
    """

    def __init__(self, look: Look, rounds: int):
        self._look, self._rounds = look, rounds

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """See `Chooser.choose`; scores are the first round's values."""
        rounds = min(self._rounds, places)
        rows: list[int] = []
        first: Tensor | None = None
        for number in range(1, rounds + 1):
            values = self._values(candidates, rows, places, step)
            first = values if first is None else first
            left = values.clone()
            left[rows] = -torch.inf
            wanted = round(places * number / rounds) - len(rows)
            rows += left.argsort(descending=True, stable=True)[:wanted].tolist()
        assert first is not None
        return Chosen(sorted(rows), first)

    def _values(self, candidates: Candidates, rows: list[int], places: int, step: int) -> Tensor:
        slopes = candidates.contracted(self._look.at(candidates, rows, places, step)[1])[:, 0]
        return candidates.worth(slopes, candidates.filled(rows, places))


class AtRandom:
    """By chance: the control that every selection must beat."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """Fills the places by chance."""
        order = torch.randperm(len(candidates), generator=self._generator)
        return Chosen(
            sorted(order[:places].tolist()), torch.full((len(candidates),), torch.nan).double()
        )


class ByLoss:
    """The largest losses, by one more forward pass: what is not learnt yet, or cannot be."""

    def __init__(self, model: nn.Module, task: Task):
        self._model, self._task = model, task

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """Fills the places with the largest losses, which are the scores."""
        with undisturbed_random(self._model), torch.no_grad():
            terms, _ = self._task.terms(self._model, candidates.ids)
        losses = terms.double().cpu()
        if candidates.shares_of_mean is not None:
            losses = losses / candidates.shares_of_mean.clamp(min=torch.finfo(losses.dtype).tiny)
        order = losses.argsort(descending=True, stable=True)
        return Chosen(sorted(order[:places].tolist()), losses)
