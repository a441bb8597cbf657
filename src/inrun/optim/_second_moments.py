"""Adagrad, Adadelta and RMSprop as `torch.optim` does them: gradients over their root mean square.

With x = (maximize ? -g : g) + decay * w, t the step's number from 1:

    Adagrad   V = v + x^2                      d = lr / (1 + (t-1) lr_decay) * x / (sqrt(V) + eps)
    Adadelta  V = rho v + (1 - rho) x^2        d = lr * sqrt(D + eps) / sqrt(V + eps) * x
    RMSprop   V = alpha v + (1 - alpha) x^2    d = lr * (momentum b + x / (sqrt(V - A^2) + eps))

where D is Adadelta's mean of squared displacements, A RMSprop's mean gradient (`centered`, else 0).
All start like the sign of the gradient, while v is mostly made of the present step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inrun.optim._divided import ElementwiseRule
from inrun.optim._rule import Live, entering, numbers_of, steps_seen


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

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[AdagradState, AdagradSetting]:
        numbers = numbers_of(group, "lr", "lr_decay", "weight_decay", "eps")
        setting = AdagradSetting._make([*numbers, group["maximize"]])
        return AdagradState(state["sum"], steps_seen(state)), setting

    def displacement(self, g: Tensor, w: Tensor, s: AdagradState, h: AdagradSetting) -> Tensor:
        x = entering(g, w, h)
        rate = h.lr / (1 + s.steps * h.lr_decay)
        return rate * (x / (torch.sqrt(s.total + x * x) + h.eps))

    def guarded(self, s: AdagradState, h: AdagradSetting, square: float) -> AdagradState:
        """With the gradient's square added to the sum once more."""
        return s._replace(total=s.total + square)

    def advance(self, g: Tensor, w: Tensor, s: AdagradState, h: AdagradSetting) -> AdagradState:
        x = entering(g, w, h)
        return AdagradState(s.total + x * x, s.steps + 1)


class AdadeltaState(NamedTuple):
    """Means of squared gradients and of squared displacements."""

    square: Tensor
    delta: Tensor
    steps: int


class AdadeltaSetting(NamedTuple):
    """The parameter group's numbers; `b2` is rho."""

    lr: float
    b2: float
    eps: float
    decay: float
    maximize: bool


class AdadeltaRule(ElementwiseRule[AdadeltaState, AdadeltaSetting]):
    """`torch.optim.Adadelta`."""

    def read(
        self, group: Live, state: Live, weight: Tensor
    ) -> tuple[AdadeltaState, AdadeltaSetting]:
        numbers = numbers_of(group, "lr", "rho", "eps", "weight_decay")
        setting = AdadeltaSetting._make([*numbers, group["maximize"]])
        nothing = torch.zeros_like(weight)
        square, delta = state.get("square_avg", nothing), state.get("acc_delta", nothing)
        return AdadeltaState(square, delta, steps_seen(state)), setting

    def _delta(self, x: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> Tensor:
        square = h.b2 * s.square + (1 - h.b2) * (x * x)
        return x * (torch.sqrt(s.delta + h.eps) / torch.sqrt(square + h.eps))

    def displacement(self, g: Tensor, w: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> Tensor:
        return h.lr * self._delta(entering(g, w, h), s, h)

    def guarded(self, s: AdadeltaState, h: AdadeltaSetting, square: float) -> AdadeltaState:
        """With the gradient's square seen once more in its mean."""
        return s._replace(square=s.square + (1 - h.b2) / h.b2 * square) if h.b2 else s

    def advance(self, g: Tensor, w: Tensor, s: AdadeltaState, h: AdadeltaSetting) -> AdadeltaState:
        x = entering(g, w, h)
        delta = self._delta(x, s, h)
        return AdadeltaState(
            h.b2 * s.square + (1 - h.b2) * (x * x),
            h.b2 * s.delta + (1 - h.b2) * (delta * delta),
            s.steps + 1,
        )


class RMSpropState(NamedTuple):
    """The mean square; where the setting has them, the mean gradient and the momentum buffer."""

    square: Tensor
    mean: Tensor | None
    buffer: Tensor | None
    steps: int


class RMSpropSetting(NamedTuple):
    """The parameter group's numbers; `b2` is alpha."""

    lr: float
    b2: float
    eps: float
    decay: float
    momentum: float
    maximize: bool


class RMSpropRule(ElementwiseRule[RMSpropState, RMSpropSetting]):
    """`torch.optim.RMSprop`."""

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[RMSpropState, RMSpropSetting]:
        numbers = numbers_of(group, "lr", "alpha", "eps", "weight_decay", "momentum")
        setting = RMSpropSetting._make([*numbers, group["maximize"]])
        nothing = torch.zeros_like(weight)
        return RMSpropState(
            state.get("square_avg", nothing),
            state.get("grad_avg", nothing) if group["centered"] else None,
            state.get("momentum_buffer", nothing) if setting.momentum > 0 else None,
            steps_seen(state),
        ), setting

    def _advanced(self, x: Tensor, s: RMSpropState, h: RMSpropSetting) -> RMSpropState:
        square = h.b2 * s.square + (1 - h.b2) * (x * x)
        mean, below = None, square
        if s.mean is not None:
            mean = h.b2 * s.mean + (1 - h.b2) * x
            below = square - mean * mean
        buffer = x / (torch.sqrt(below) + h.eps)
        if s.buffer is not None:
            buffer = h.momentum * s.buffer + buffer
        return RMSpropState(square, mean, buffer, s.steps + 1)

    def displacement(self, g: Tensor, w: Tensor, s: RMSpropState, h: RMSpropSetting) -> Tensor:
        after = self._advanced(entering(g, w, h), s, h)
        assert after.buffer is not None
        return h.lr * after.buffer

    def guarded(self, s: RMSpropState, h: RMSpropSetting, square: float) -> RMSpropState:
        """With the gradient's square seen once more in its mean."""
        return s._replace(square=s.square + (1 - h.b2) / h.b2 * square) if h.b2 else s

    def advance(self, g: Tensor, w: Tensor, s: RMSpropState, h: RMSpropSetting) -> RMSpropState:
        after = self._advanced(entering(g, w, h), s, h)
        return after if s.buffer is not None else after._replace(buffer=None)
