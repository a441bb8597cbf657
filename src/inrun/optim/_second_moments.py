"""Adagrad, Adadelta and RMSprop as `torch.optim` does them: gradients over their root mean square.

With x = (maximize ? -g : g) + decay * w, t the step's number from 1:

    Adagrad   V = v + x^2                      d = lr / (1 + (t-1) lr_decay) * x / (sqrt(V) + eps)
    Adadelta  V = rho v + (1 - rho) x^2        d = lr * sqrt(D + eps) / sqrt(V + eps) * x
    RMSprop   V = alpha v + (1 - alpha) x^2    d = lr * (momentum b + x / (sqrt(V - A^2) + eps))

where D is Adadelta's mean of squared displacements, A RMSprop's mean gradient (`centered`, else 0).
All start like the sign of the gradient, while v is mostly made of the present step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._divided import ElementwiseRule
from inrun.optim._rule import steps_seen


class AdagradState(NamedTuple):
    """The sum of squares before the step."""

    total: Tensor
    steps: int


class AdagradSetting(NamedTuple):
    """The parameter group's numbers."""

    lr: float
    lr_decay: float
    decay: float
    eps: float
    maximize: bool


class AdagradRule(ElementwiseRule[AdagradState, AdagradSetting]):
    """`torch.optim.Adagrad`."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdagradState, AdagradSetting]:
        """See `Rule.read`."""
        setting = AdagradSetting(
            lr=float(group["lr"]),
            lr_decay=float(group["lr_decay"]),
            decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            maximize=group["maximize"],
        )
        return AdagradState(state["sum"], steps_seen(state)), setting

    def displacement(self, g: Tensor, w: Tensor, s: AdagradState, h: AdagradSetting) -> Tensor:
        """See `Rule.displacement`."""
        x = entering(g, w, h)
        rate = h.lr / (1 + s.steps * h.lr_decay)
        return rate * (x / (torch.sqrt(s.total + x * x) + h.eps))

    def advance(self, g: Tensor, w: Tensor, s: AdagradState, h: AdagradSetting) -> AdagradState:
        """See `Rule.advance`."""
        x = entering(g, w, h)
        return AdagradState(s.total + x * x, s.steps + 1)

    def steps_taken(self, s: AdagradState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps


class AdadeltaState(NamedTuple):
    """Means of squared gradients and of squared displacements."""

    square: Tensor
    delta: Tensor
    steps: int


class AdadeltaSetting(NamedTuple):
    """The parameter group's numbers."""

    lr: float
    rho: float
    eps: float
    decay: float
    maximize: bool


class AdadeltaRule(ElementwiseRule[AdadeltaState, AdadeltaSetting]):
    """`torch.optim.Adadelta`."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdadeltaState, AdadeltaSetting]:
        """See `Rule.read`."""
        setting = AdadeltaSetting(
            lr=float(group["lr"]),
            rho=float(group["rho"]),
            eps=float(group["eps"]),
            decay=float(group["weight_decay"]),
            maximize=group["maximize"],
        )
        nothing = torch.zeros_like(weight)
        square, delta = state.get("square_avg", nothing), state.get("acc_delta", nothing)
        return AdadeltaState(square, delta, steps_seen(state)), setting

    def _delta(self, x: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> Tensor:
        square = h.rho * s.square + (1 - h.rho) * (x * x)
        return x * (torch.sqrt(s.delta + h.eps) / torch.sqrt(square + h.eps))

    def displacement(self, g: Tensor, w: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> Tensor:
        """See `Rule.displacement`."""
        return h.lr * self._delta(entering(g, w, h), s, h)

    def advance(self, g: Tensor, w: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> AdadeltaState:
        """See `Rule.advance`."""
        x = entering(g, w, h)
        delta = self._delta(x, s, h)
        return AdadeltaState(
            h.rho * s.square + (1 - h.rho) * (x * x),
            h.rho * s.delta + (1 - h.rho) * (delta * delta),
            s.steps + 1,
        )

    def steps_taken(self, s: AdadeltaState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps

    def window(self, s: AdadeltaState, h: AdadeltaSetting) -> float:
        """See `Rule.window`."""
        return 1 / (1 - h.rho) if h.rho < 1 else math.inf


class RMSpropState(NamedTuple):
    """The mean square; where the setting has them, the mean gradient and the momentum buffer."""

    square: Tensor
    mean: Tensor | None
    buffer: Tensor | None
    steps: int


class RMSpropSetting(NamedTuple):
    """The parameter group's numbers."""

    lr: float
    alpha: float
    eps: float
    decay: float
    momentum: float
    maximize: bool


class RMSpropRule(ElementwiseRule[RMSpropState, RMSpropSetting]):
    """`torch.optim.RMSprop`."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[RMSpropState, RMSpropSetting]:
        """See `Rule.read`."""
        setting = RMSpropSetting(
            lr=float(group["lr"]),
            alpha=float(group["alpha"]),
            eps=float(group["eps"]),
            decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            maximize=group["maximize"],
        )
        nothing = torch.zeros_like(weight)
        return RMSpropState(
            state.get("square_avg", nothing),
            state.get("grad_avg", nothing) if group["centered"] else None,
            state.get("momentum_buffer", nothing) if setting.momentum > 0 else None,
            steps_seen(state),
        ), setting

    def _advanced(self, x: Tensor, s: RMSpropState, h: RMSpropSetting) -> RMSpropState:
        square = h.alpha * s.square + (1 - h.alpha) * (x * x)
        mean, below = None, square
        if s.mean is not None:
            mean = h.alpha * s.mean + (1 - h.alpha) * x
            below = square - mean * mean
        buffer = x / (torch.sqrt(below) + h.eps)
        if s.buffer is not None:
            buffer = h.momentum * s.buffer + buffer
        return RMSpropState(square, mean, buffer, s.steps + 1)

    def displacement(self, g: Tensor, w: Tensor, s: RMSpropState, h: RMSpropSetting) -> Tensor:
        """See `Rule.displacement`."""
        after = self._advanced(entering(g, w, h), s, h)
        assert after.buffer is not None
        return h.lr * after.buffer

    def advance(self, g: Tensor, w: Tensor, s: RMSpropState, h: RMSpropSetting) -> RMSpropState:
        """See `Rule.advance`."""
        after = self._advanced(entering(g, w, h), s, h)
        return after if s.buffer is not None else after._replace(buffer=None)

    def steps_taken(self, s: RMSpropState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps

    def window(self, s: RMSpropState, h: RMSpropSetting) -> float:
        """See `Rule.window`."""
        return 1 / (1 - h.alpha) if h.alpha < 1 else math.inf


def entering(g: Tensor, w: Tensor, h: Any) -> Tensor:
    """The gradient as the rule takes it in: its sign, and coupled decay."""
    x = -g if h.maximize else g
    return x + h.decay * w if h.decay else x
