"""The validation passes of a run: one a step, as a step's closing pass is the next one's opening.

Where there is no validation set, the next training batch's own gradient is the closing one, and no
pass is run at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inrun.attribution._plan import ParameterPlan, ReadBefore
from inrun.attribution._weights import WeightsMark
from inrun.capture import Capture, Processes
from inrun.directions import Direction
from inrun.shards import is_sharded
from inrun.utility import Evaluation, Utility, curvature, displaced, evaluate


class Validation:
    """Holds what must survive from one step to the next: the last closing pass."""

    def __init__(self, model: nn.Module, utility: Utility, processes: Processes):
        self._model, self._utility, self._processes = model, utility, processes
        self._last: tuple[Evaluation, WeightsMark] | None = None
        self._unproven: tuple[WeightsMark, WeightsMark] | None = None
        self.reads_late = (
            False  # whether the device's numbers are read later than they are asked for
        )
        self._passes = 0
        self._age = 0  # steps that the last pass's gradient has been taken for the present one's

    @property
    def follows(self) -> bool:
        """Whether the next training batch stands for a validation set."""
        return self._utility.follows

    def deal(self, parts: int) -> None:
        """Passes look at one of so many parts of the rows from now on, unless they do already."""
        if parts > 1 and self._utility.rotating == 1:
            self._utility = self._utility.dealt(parts)

    def opening(self, capture: Capture) -> Evaluation:
        """Losses and gradients at the present weights: the last closing ones if nothing moved."""
        if self._last is not None:
            evaluation, mark = self._last
            known = list(evaluation.gradients) == list(capture.trained)
            now = WeightsMark(capture.trained.values()) if known else mark
            known = known and (mark.same_versions(now) if self.reads_late else mark.same(now))
            if known and self.reads_late:
                self._unproven = mark, now
            if capture.sharded:  # each process sees its own parts; a pass is every process's
                (known,) = self._processes.all([known])
            if known:
                return evaluation
        return self._kept(self._fresh(capture), capture)

    def proven(self) -> bool:
        """Whether the weights were the last closing pass's where versions alone said so.

        Asked once the device has got there; true where they said otherwise.
        """
        marks, self._unproven = self._unproven, None
        return marks is None or marks[0].same(marks[1])

    def closing(self, capture: Capture) -> Evaluation:
        """Losses and gradients at the present weights, which are kept.

        By a new pass, or, where the utility is not refreshed with every step, the last one's
        gradients with losses that are not known.
        """
        self._age += 1
        if self._last is None or self._age >= self._utility.refresh:
            return self._kept(self._fresh(capture), capture)
        gradients = self._last[0].gradients
        return self._kept(Evaluation(_unknown(len(self._utility.targets)), gradients), capture)

    def _fresh(self, capture: Capture) -> Evaluation:
        self._age = 0
        return self._evaluate(capture)

    def _kept(self, evaluation: Evaluation, capture: Capture) -> Evaluation:
        self._last = (evaluation, WeightsMark(capture.trained.values()))
        return evaluation

    def forget(self) -> None:
        """The weights move without being scored."""
        self._last = self._unproven = None

    def _evaluate(self, capture: Capture) -> Evaluation:
        """A validation pass; of several processes the mean, whose rows may be the same or not."""
        part = self._utility.part(self._passes)
        found = evaluate(part, self._model, capture.trained, checked=not self.reads_late)
        self._passes += 1
        if self._processes.size == 1:
            return found
        gradients = {
            name: t if is_sharded(capture.trained[name]) else self._processes.mean(t)
            for name, t in found.gradients.items()
        }
        return Evaluation(self._processes.mean(found.losses), gradients)

    def extra(
        self, direction: Direction, plans: Mapping[str, ParameterPlan], capture: Capture
    ) -> dict[str, dict[str, Tensor]]:
        """What a direction needs beside the two: gradients by kind and parameter."""
        extra: dict[str, dict[str, Tensor]] = {}
        if direction.needs_null:
            null = {
                plan.parameter: plan.history.momentum + plan.history.decay
                for plan in plans.values()
                if isinstance(plan, ReadBefore)
            }
            with displaced(null):
                extra["null"] = self._evaluate(capture).gradients
        if direction.needs_curvature:
            along = {
                name: plan.slope.along(plan.move.gradient)
                for name, plan in plans.items()
                if isinstance(plan, ReadBefore)
            }
            found = curvature(self._utility, self._model, capture.trained, along)
            extra["curvature"] = {n: self._processes.mean(t) for n, t in found.items()}
        return extra

    @property
    def passes(self) -> int:
        """How many were run."""
        return self._passes

    def go_to(self, passes: int) -> None:
        """Goes on from a checkpoint: which rows a pass looks at goes by its number."""
        self._passes, self._last, self._age = passes, None, 0


def following(gradients: Mapping[str, Tensor], targets: int = 1) -> Evaluation:
    """The gradients that the next step consumes, as a closing pass whose losses are not known."""
    rows = {name: g.detach().unsqueeze(0) for name, g in gradients.items()}
    return Evaluation(_unknown(targets), rows)


def _unknown(targets: int) -> Tensor:
    return torch.full((targets,), float("nan"), dtype=torch.float64)
