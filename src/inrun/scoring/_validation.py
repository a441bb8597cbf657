"""The validation passes of a run: one per step, as a step's closing pass is the next one's opening.

Where something moved in between that is no step (running statistics, weights that were edited, a
second model that the loss depends on), the opening pass is run anew, on the same rows. The
difference to the closing loss before is the step's entry `other`, so that the books telescope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from inrun.capture import Capture
from inrun.directions import Direction
from inrun.distributed import Processes, agreed, is_sharded
from inrun.scoring._marks import Surroundings, SurroundingsMark, WeightsMark
from inrun.scoring._plan import ParameterPlan
from inrun.utility import Evaluation, Utility, curvature, displaced, evaluate, losses_of


@dataclass(frozen=True)
class _Pass:
    """A pass that may serve again, what it saw, and which part of the rows."""

    evaluation: Evaluation
    weights: WeightsMark
    surroundings: SurroundingsMark
    part: int


class Validation:
    """Holds what must survive from one step to the next: the last closing pass."""

    def __init__(self, model: nn.Module, utility: Utility, processes: Processes):
        self._model, self._whole, self._processes = model, utility, processes
        self._utility = utility
        self.surroundings = Surroundings(model, utility.loss_fn)
        self._last: _Pass | None = None
        self.passes = 0  # that were run
        self._age = 0  # steps that the last pass's gradient has been taken for the present one's
        self._other: Tensor | None = None
        self._disturbed = self._edited = False
        self.weights_edited = False  # whether weights moved between steps without being scored

    def deal(self, parts: int) -> None:
        """Passes look at one of so many parts of the rows from now on, unless they did at first."""
        if self._whole.rotating == 1 and parts != self._utility.rotating:
            self._utility = (
                self._whole.split(parts, self._whole.refresh) if parts > 1 else self._whole
            )
            self._last = None  # a step's passes look at parts of one division

    @property
    def judged(self) -> str:
        """By what a step is: see `inrun.truth.AUDIT`."""
        if self._utility.rotating > 1:
            return "a part of the rows"
        return "older gradients" if self._utility.refresh > 1 else "all rows"

    def disturb(self) -> None:
        """Something that the loss depends on was moved, maybe past the version counters."""
        self._disturbed = True

    def opening(self, capture: Capture) -> Evaluation:
        """Losses and gradients at the present weights: the last closing ones if nothing moved."""
        last = self._last
        if last is None:
            return self._kept(self._fresh(capture), capture)
        around = self.surroundings.mark(capture.trained)
        if self._still_holds(last, capture, around):
            if self._buffers_rest(last, capture, around):
                return last.evaluation
            anew = self._losses_anew(last)
        else:
            anew = self._evaluate(capture, last.part)
            self._age = 0
        moved = last.evaluation.losses.to(anew.losses.device) - anew.losses
        moved = torch.where(moved.isnan(), torch.zeros_like(moved), moved)  # losses not known
        if self._edited:  # swapping weights to and fro, as averages do, leaves rounding alone
            self.weights_edited |= bool((moved.abs() > 1e-5 * anew.losses.abs()).any())
            self._edited = False
        self._other = moved if self._other is None else self._other + moved
        return self._kept(anew, capture, last.part)

    def _still_holds(self, last: _Pass, capture: Capture, around: SurroundingsMark) -> bool:
        """Whether weights and surroundings are the last closing pass's."""
        known = list(last.evaluation.gradients) == list(capture.trained)
        now = WeightsMark(capture.trained.values()) if known else last.weights
        mark, still = last.weights, known
        if known:
            still = mark.same(now)
            self._edited = not still and not mark.same_numbers(now)
        still = still and not self._disturbed and last.surroundings.same(around)
        self._disturbed = False
        # each process sees its own weights' parts and surroundings; a pass is every process's
        (still,) = self._processes.all([still])
        return still

    def _buffers_rest(self, last: _Pass, capture: Capture, around: SurroundingsMark) -> bool:
        """Whether running statistics are the last closing pass's."""
        rest = last.surroundings.same_buffers(around)
        (rest,) = self._processes.all([rest])
        return rest

    def _losses_anew(self, last: _Pass) -> Evaluation:
        """The last pass with its losses as they are after running statistics moved.

        Its gradients stay: one batch moves the statistics a little (on a small CNN that was worth
        0.2 to 1.6 % of the values' length), and a backward pass costs twice what the loss does.
        """
        part = self._utility.part(last.part)
        losses = agreed(self._processes, lambda: losses_of(part, self._model, checked=False))
        if self._processes.size > 1:
            losses = self._processes.mean(losses)
        return replace(last.evaluation, losses=losses, checked=False)

    def take_other(self) -> Tensor | None:
        """What changed the loss since the last closing pass without any step, (K,); None: nothing.

        It is what the last closing loss was above the loss at this step's opening.
        """
        other, self._other = self._other, None
        return other

    def closing(self, capture: Capture) -> Evaluation:
        """Losses and gradients at the present weights, which are kept.

        By a new pass, or, where the utility is not refreshed with every step, the last one's
        gradients with losses that are not known. Whether numbers are finite is told when the step's
        values are read.
        """
        self._age += 1
        if self._last is None or self._age >= self._utility.refresh:
            return self._kept(self._fresh(capture, checked=False), capture)
        stale = Evaluation(_unknown(len(self._utility.targets)), self._last.evaluation.gradients)
        return self._kept(stale, capture, self._last.part)

    def _fresh(self, capture: Capture, *, checked: bool = True) -> Evaluation:
        """A pass over the rows whose turn it is."""
        self._age = 0
        found = self._evaluate(capture, self.passes, checked=checked)
        self.passes += 1
        return found

    def _kept(
        self, evaluation: Evaluation, capture: Capture, part: int | None = None
    ) -> Evaluation:
        weights = WeightsMark(capture.trained.values())
        around = self.surroundings.mark(capture.trained)
        part = self.passes - 1 if part is None else part
        self._last = _Pass(evaluation, weights, around, part)
        return evaluation

    def forget(self) -> None:
        """The weights move without being scored."""
        self._last = self._other = None
        self.weights_edited = self._disturbed = False

    def _evaluate(self, capture: Capture, number: int, *, checked: bool = True) -> Evaluation:
        """A validation pass; of several processes the mean, whose rows may be the same or not."""
        part = self._utility.part(number)
        found = agreed(
            self._processes, lambda: evaluate(part, self._model, capture.trained, checked=checked)
        )
        found = replace(found, rows=number % self._utility.rotating)
        if self._processes.size == 1:
            return found
        gradients = {
            name: t if is_sharded(capture.trained[name]) else self._processes.mean(t)
            for name, t in found.gradients.items()
        }
        return replace(found, losses=self._processes.mean(found.losses), gradients=gradients)

    def extra(
        self, direction: Direction, plans: Mapping[str, ParameterPlan], capture: Capture
    ) -> dict[str, dict[str, Tensor]]:
        """What a direction needs beside the two: gradients by kind and parameter."""
        extra: dict[str, dict[str, Tensor]] = {}
        if direction.needs_null:
            null = {plan.parameter: plan.null() for plan in plans.values()}
            with displaced(null):
                extra["null"] = self._evaluate(capture, self.passes).gradients
                self.passes += 1
        if direction.needs_curvature:
            along = {name: plan.along() for name, plan in plans.items()}
            there = {name: t for name, t in along.items() if t is not None}
            found = agreed(
                self._processes,
                lambda: curvature(self._utility, self._model, capture.trained, there),
            )
            extra["curvature"] = {n: self._processes.mean(t) for n, t in found.items()}
        return extra

    def go_to(self, passes: int) -> None:
        """Goes on from a checkpoint: which rows a pass looks at goes by its number."""
        self.passes, self._last, self._age = passes, None, 0


def _unknown(targets: int) -> Tensor:
    return torch.full((targets,), float("nan"), dtype=torch.float64)
