"""Rules that treat each element alone and keep no mean gradient as Adam does, but for Lion's.

Adagrad, Adadelta and RMSprop as `torch.optim` does them: gradients over their root mean square.
With x = (maximize ? -g : g) + decay * w, t the step's number from 1:

    Adagrad   V = v + x^2                      d = lr / (1 + (t-1) lr_decay) * x / (sqrt(V) + eps)
    Adadelta  V = rho v + (1 - rho) x^2        d = lr * sqrt(D + eps) / sqrt(V + eps) * x
    RMSprop   V = alpha v + (1 - alpha) x^2    d = lr * (momentum b + x / (sqrt(V - A^2) + eps))

where D is Adadelta's mean of squared displacements, A RMSprop's mean gradient (`centered`, else 0).
All start like the sign of the gradient, while v is mostly made of the present step. Through signs
alone the gradient acts in `torch.optim`'s Rprop, and in Lion:

    Rprop  d = sign(x) * a,  a = the step size, times eta+ where x and the gradient before agree in
           sign, kept within its bounds; d = 0 where they do not
    Lion   d = lr * sign(b1 m + (1 - b1) (x + coupled decay * w)) + lr * decay * w

d is a step function of each element: all that it does lies in jumps, and its slope on the way from
0 to g, (d(g) - d(0)) / g, is large where g just crosses one and 0 elsewhere. That is the path
integral of a step function, exact for the step as a whole; among samples it hands a jump out in
proportion to their shares, where Shapley's value asks who tips it. `path-smoothed` answers that.
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
    lr: float
    lr_decay: float
    decay: float
    eps: float
    maximize: bool


class AdagradRule(ElementwiseRule[AdagradState, AdagradSetting]):
    """`torch.optim.Adagrad`."""

    mean_square = "total"

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

    mean_square = "square"

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

    mean_square = "square"

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

    def advance(self, g: Tensor, w: Tensor, s: RMSpropState, h: RMSpropSetting) -> RMSpropState:
        after = self._advanced(entering(g, w, h), s, h)
        return after if s.buffer is not None else after._replace(buffer=None)


class RpropState(NamedTuple):
    """The gradient before (0 where it was dropped) and the step sizes."""

    previous: Tensor
    size: Tensor


class RpropSetting(NamedTuple):
    lr: float
    shrink: float
    grow: float
    least: float
    most: float
    maximize: bool
    decay: float = 0.0


class RpropRule(ElementwiseRule[RpropState, RpropSetting]):
    """`torch.optim.Rprop`."""

    jumps = True

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[RpropState, RpropSetting]:
        bounds = [float(number) for number in (*group["etas"], *group["step_sizes"])]
        setting = RpropSetting._make([float(group["lr"]), *bounds, group["maximize"], 0.0])
        if not state:
            size = torch.full_like(weight, setting.lr)
            return RpropState(torch.zeros_like(weight), size), setting
        return RpropState(state["prev"], state["step_size"]), setting

    def displacement(self, g: Tensor, w: Tensor, s: RpropState, h: RpropSetting) -> Tensor:
        x = -g if h.maximize else g
        agree = torch.sign(x * s.previous)
        known = abs(agree)
        grown = (s.size * h.grow).clamp(h.least, h.most)
        same = s.size.clamp(h.least, h.most)
        return torch.sign(x) * ((agree + known) / 2 * grown + (1 - known) * same)

    def advance(self, g: Tensor, w: Tensor, s: RpropState, h: RpropSetting) -> RpropState:
        x = -g if h.maximize else g
        agree = torch.sign(x * s.previous)
        factor = torch.ones_like(agree).masked_fill(agree > 0, h.grow)
        factor = factor.masked_fill(agree < 0, h.shrink)
        size = (s.size * factor).clamp(h.least, h.most)
        return RpropState(x.masked_fill(agree < 0, 0.0), size)


class LionState(NamedTuple):
    """The mean gradient."""

    m: Tensor


class LionSetting(NamedTuple):
    """The group's numbers. `decay` joins the gradient (coupled), `apart` shrinks the weights."""

    lr: float
    b1: float
    b2: float
    decay: float
    apart: float
    maximize: bool


class LionRule(ElementwiseRule[LionState, LionSetting]):
    """Lion of `lion_pytorch`, `pytorch_optimizer` and others that store `exp_avg`.

    Args:
        decay_over: what `weight_decay` is divided by before the learning rate multiplies it.
        maximize: for packages that keep it on the optimizer.
    """

    jumps = True

    def __init__(self, *, decay_over: float = 1.0, maximize: bool = False):
        self._decay_over, self._maximize = decay_over, maximize

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[LionState, LionSetting]:
        lr, decay = numbers_of(group, "lr", "weight_decay")
        decay /= self._decay_over
        apart = group.get("weight_decouple", True)
        setting = LionSetting(
            lr=lr,
            b1=float(group["betas"][0]),
            b2=float(group["betas"][1]),
            decay=0.0 if apart else decay,
            apart=decay * (1.0 if group.get("fixed_decay") else lr) if apart else 0.0,
            maximize=bool(group.get("maximize", self._maximize)),
        )
        return LionState(state.get("exp_avg", torch.zeros_like(weight))), setting

    def displacement(self, g: Tensor, w: Tensor, s: LionState, h: LionSetting) -> Tensor:
        x = entering(g, w, h)
        return h.lr * torch.sign(h.b1 * s.m + (1 - h.b1) * x) + h.apart * w

    def advance(self, g: Tensor, w: Tensor, s: LionState, h: LionSetting) -> LionState:
        x = entering(g, w, h)
        return LionState(h.b2 * s.m + (1 - h.b2) * x)
