"""Before the optimizer steps: for each parameter what its direction will be made of.

Most directions are made of the state before the step, which the step overwrites: slope and history
are computed then and kept. For `path` through Adam they can be told from the state after the step,
so that nothing of a model's size is kept in between.

Rules of `torch.optim` are tested against it. Those of other packages are recognised by name, and
those that were registered were written by the user: for them the first scored step, and then the
2nd, 4th, 8th and so on, are compared with what the rule says, before they are booked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from inrun.directions import (
    ESTIMATORS,
    Direction,
    Gradients,
    Pulled,
    SampleDirection,
    evaluations,
)
from inrun.distributed import own_part
from inrun.errors import InvariantError
from inrun.factors import compute_dtype
from inrun.optim import Diagonal, History, Move, Slope, Together, as_rows, tested

RELATIVE = 1e-3  # of a step: how far a rule may be from it
SMOOTHED_WORK = 240_000_000  # elements displaced: about a second per step on one core


@dataclass(eq=False)
class ParameterPlan(ABC):
    """One parameter at one step.

    `optimizer`: the number of the one that holds it. `move`: as it was read before the step.
    `scale`: what the consumed gradient is in units of the shares' sum, a number, or elementwise
    where it was changed so; None where there is nothing to tell it by, and nothing to scale.
    `held`: whether its shares are still to be contracted.

    `by_sample`: whether directions differ from sample to sample, so that `values` takes shares.
    `after`: whether everything is told from the state after the step.
    """

    by_sample: ClassVar[bool] = False
    after: ClassVar[bool] = False

    optimizer: int
    parameter: Tensor
    direction: Direction
    move: Move[Any, Any]
    scale: Tensor | float | None
    held: bool
    processes: int

    def update_square(self) -> Tensor:
        """||d(g) - d(0)||^2, of what the gradient moves; before the step."""
        move = self.move
        moved = move.displacement(move.gradient)
        moved = moved - move.displacement(torch.zeros_like(move.gradient))
        return moved.float().square().sum()

    @property
    def share_scale(self) -> Tensor | float:
        """What to multiply shares by, so that they sum to the consumed gradient."""
        return 1.0 if self.scale is None else self.scale / self.processes

    def null(self) -> Tensor | float:
        """What the update without any gradient displaces, where that was computed."""
        return 0.0

    def along(self) -> Tensor | None:
        """What the gradient displaces to first order, where that was computed."""
        return None

    def values(self, at: Gradients, shares_B: Tensor) -> Tensor:
        """(B, K), of the shares (B, *shape) of all samples of the step, where `by_sample`."""
        raise NotImplementedError(f"{self.direction.name!r} has one direction for all samples.")

    @abstractmethod
    def pull(self, at: Gradients, moved: Move[Any, Any] | None) -> Pulled:
        """The direction that shares meet, and the books, in compute precision."""


@dataclass(eq=False)
class ReadBefore(ParameterPlan):
    """Slope and history were computed from the state before the step."""

    slope: Slope
    history: History

    def null(self) -> Tensor | float:
        return self.history.momentum + self.history.decay

    def along(self) -> Tensor | None:
        return self.slope.along(self.move.gradient)

    def gradient(self, at: Gradients) -> Tensor:
        """The validation loss's part of the direction, (K, *shape)."""
        return self.direction.gradient(at, self.move).to(compute_dtype(self.parameter))

    def pull(self, at: Gradients, moved: Move[Any, Any] | None) -> Pulled:
        """The validation gradient through the transposed slope, and the history's entries."""
        gradient_K = self.gradient(at)
        entries = self._entries(at, gradient_K)
        if not self.held:
            return Pulled(None, *entries)
        return Pulled(self.slope.transposed(gradient_K, self.share_scale), *entries)

    def _entries(self, at: Gradients, gradient_K: Tensor) -> tuple[Tensor, Tensor]:
        along_KP = as_rows(self.direction.history_gradient(at, gradient_K))
        momentum, decay = (
            along_KP @ displaced.reshape(-1).to(along_KP.dtype)
            if isinstance(displaced, Tensor)  # a number displaces nothing: it is 0
            else along_KP.new_zeros(len(along_KP))
            for displaced in self.history
        )
        return momentum, decay


@dataclass(eq=False)
class SampleBySample(ReadBefore):
    """The direction differs from sample to sample: it meets the shares themselves."""

    by_sample = True

    def pull(self, at: Gradients, moved: Move[Any, Any] | None) -> Pulled:
        """See `ParameterPlan.pull`: the books alone."""
        return Pulled(None, *self._entries(at, self.gradient(at)))

    def values(self, at: Gradients, shares_B: Tensor) -> Tensor:
        direction = cast(SampleDirection, self.direction)
        return direction.values(self.move, shares_B * self.share_scale, self.gradient(at))


@dataclass(eq=False)
class SettledAfter(ParameterPlan):
    """Everything is told from the state after the step."""

    after = True

    def pull(self, at: Gradients, moved: Move[Any, Any] | None) -> Pulled:
        """Direction and books by the estimator's own pass over the state after the step."""
        assert moved is not None
        elementwise = isinstance(self.share_scale, Tensor)
        scale = 1.0 if elementwise else float(self.share_scale)
        pulled = self.direction.formed_after_step(moved, at, scale, held=self.held)
        if elementwise and pulled.direction is not None:
            pulled.direction.mul_(self.share_scale)
        return pulled


def smoothing_work(moving: Iterable[tuple[Tensor, Move[Any, Any]]], samples: int) -> float:
    """Elements that smoothing a step would displace, dearer rules counted as several."""
    elements = sum(p.numel() * m.rule.effort(p.shape) for p, m in moving)
    return evaluations(samples) * elements


class Smoothing:
    """Which parameters of a step are smoothed: where the rule acts like a sign and it is cheap."""

    def __init__(self, direction: Direction, steps: int):
        self._direction, self.steps = direction, steps

    def direction_for(
        self, move: Move[Any, Any], work: float, *, cancels: float | None = None
    ) -> Direction:
        """The direction of one parameter.

        Args:
            move: its move.
            work: what smoothing the whole step costs.
            cancels: what smoothing this parameter costs, where its shares cancel to a gradient that
                is rounding beside them (a bias in front of BatchNorm): the update's slope there
                says nothing of any single share.
        """
        if not self.steps or self._direction.name != "path":
            return self._direction
        age = move.age()
        if age is None:  # the update is linear in the gradient, or nearly so
            return self._direction
        young = age < self.steps and work <= SMOOTHED_WORK
        if young or (cancels is not None and cancels <= SMOOTHED_WORK):
            return ESTIMATORS["path-smoothed"]
        return self._direction


def plan_parameter(
    optimizer: int,
    p: Tensor,
    move: Move[Any, Any],
    direction: Direction,
    scale: Tensor | float | None,
    *,
    held: bool,
    processes: int = 1,
) -> ParameterPlan:
    if direction.forms_after_step(move):
        return SettledAfter(optimizer, p, direction, move, scale, held, processes)
    each = direction.by_sample
    slope = direction.slope(move).kept() if held and not each else Diagonal(0.0)
    kind, kept = (SampleBySample, move.frozen()) if each else (ReadBefore, move)
    return kind(
        optimizer, p, direction, kept, scale, held, processes, slope, direction.history(move)
    )


class RuleCheck:
    """Predicts weights before a step and compares them after it.

    `steps`: how many were looked at; a run that goes on has those of its checkpoint.
    """

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self._expected: dict[str, tuple[str, Tensor, float]] = {}

    def before(self, optimizers: Together, plans: Mapping[str, ParameterPlan]) -> None:
        """Takes note of where the rules say that the weights will be, if this step is checked."""
        self._expected = {}
        self.steps += 1
        if self.steps & (self.steps - 1):  # not a power of two
            return
        for name, plan in plans.items():
            optimizer = optimizers.members[plan.optimizer]
            if not tested(optimizer):
                kind = type(optimizer).__name__
                moved = plan.move.displacement(plan.move.gradient)
                self._expected[name] = kind, plan.move.weight - moved, _size(moved)

    def after(self, plans: Mapping[str, ParameterPlan]) -> None:
        for name, (kind, expected, moved) in self._expected.items():
            if name not in plans:
                continue  # its optimizer did not step
            found = own_part(plans[name].parameter.detach())
            wrong = _size(found - expected)
            rounding = 4 * torch.finfo(found.dtype).eps * _size(found)
            if not wrong <= RELATIVE * moved + rounding:
                raise InvariantError(
                    f"The update rule for {kind} is not what the optimizer did to "
                    f"{name}: they are {wrong / max(moved, 1e-30):.2g} of the step apart, summed "
                    "over elements. Nothing was scored. Where the rule is your own, compare it "
                    "with the optimizer's step() and its options; where it is not, this version or "
                    "option of the optimizer is not known here: write its rule, "
                    "inrun.optim.register."
                )


def _size(t: Tensor) -> float:
    return float(t.abs().sum(dtype=torch.float64))
