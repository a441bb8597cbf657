"""Before the optimizer steps: for each parameter what its direction will be made of.

Most directions are made of the state before the step, which the step overwrites: slope and history
are computed then and kept. For `path` through Adam they can be told from the state after the step,
so that nothing of a model's size is kept in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

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
from inrun.factors import compute_dtype
from inrun.optim import Diagonal, History, Move, Slope, as_rows

SMOOTHED_WORK = 240_000_000  # elements displaced: about a second a step on one core


@dataclass(eq=False)
class ParameterPlan(ABC):
    """One parameter at one step.

    `optimizer`: the number of the one that holds it. `move`: as it was read before the step.
    `scale`: what the consumed gradient is in units of the shares' sum, a number, or elementwise
    where it was changed so; None where there is nothing to tell it by, and nothing to scale.
    `held`: whether its shares are still to be contracted.
    """

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

    def kept(self) -> ParameterPlan:
        """The same with a gradient that the loop does not overwrite, for scoring it later."""
        move = self.move
        gradient = move.gradient.detach().clone()
        held = Move(move.rule, move.weight, gradient, move.state, move.setting)
        return replace(self, move=held)

    @abstractmethod
    def pull(self, at: Gradients, after: Move[Any, Any] | None) -> Pulled:
        """The direction that shares meet, and the books, in compute precision.

        Args:
            at: the validation gradients.
            after: the move read again after the step.
        """


@dataclass(eq=False)
class ReadBefore(ParameterPlan):
    """Slope and history were computed from the state before the step."""

    slope: Slope
    history: History

    def gradient(self, at: Gradients) -> Tensor:
        """The validation loss's part of the direction, (K, *shape)."""
        return self.direction.gradient(at, self.move).to(compute_dtype(self.parameter))

    def pull(self, at: Gradients, after: Move[Any, Any] | None) -> Pulled:
        """See `ParameterPlan.pull`."""
        gradient_K = self.gradient(at)
        entries = self._entries(at, gradient_K)
        if not self.held:
            return Pulled(None, *entries)
        return Pulled(self.slope.transposed(gradient_K, self.share_scale), *entries)

    def _entries(self, at: Gradients, gradient_K: Tensor) -> tuple[Tensor, Tensor]:
        """What momentum and decay did, each (K,)."""
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

    def kept(self) -> ParameterPlan:
        """Its move is a copy already."""
        return self

    def pull(self, at: Gradients, after: Move[Any, Any] | None) -> Pulled:
        """See `ParameterPlan.pull`: the books alone."""
        return Pulled(None, *self._entries(at, self.gradient(at)))

    def values(self, at: Gradients, shares_B: Tensor) -> Tensor:
        """(B, K), of the shares (B, *shape) of all samples of the step."""
        assert isinstance(self.direction, SampleDirection)
        return self.direction.values(self.move, shares_B * self.share_scale, self.gradient(at))


@dataclass(eq=False)
class SettledAfter(ParameterPlan):
    """Everything is told from the state after the step."""

    def pull(self, at: Gradients, after: Move[Any, Any] | None) -> Pulled:
        """See `ParameterPlan.pull`."""
        assert after is not None
        # a fused step under a gradient scaler unscales .grad itself: the gradient is the one read
        after = Move(after.rule, after.weight, self.move.gradient, after.state, self.move.setting)
        elementwise = isinstance(self.share_scale, Tensor)
        scale = 1.0 if elementwise else float(self.share_scale)
        pulled = self.direction.settled(after, at, scale, held=self.held)
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
    *,
    held: bool,
    processes: int = 1,
) -> ParameterPlan:
    """The plan of one parameter, whose `scale` is not known yet.

    Args:
        optimizer: the number of the one that holds it.
        p: the parameter.
        move: read before the step.
        direction: the method.
        held: whether its shares are still to be contracted.
        processes: how many share the batch.
    """
    if direction.settles(move):
        return SettledAfter(optimizer, p, direction, move, None, held, processes)
    each = isinstance(direction, SampleDirection)
    slope = direction.slope(move).kept() if held and not each else Diagonal(0.0)
    kind, kept = (SampleBySample, move.frozen()) if each else (ReadBefore, move)
    return kind(
        optimizer, p, direction, kept, None, held, processes, slope, direction.history(move)
    )
