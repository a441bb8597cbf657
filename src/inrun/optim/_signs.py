"""Rprop as `torch.optim` does it, and Lion: the gradient acts through signs alone.

With x = (maximize ? -g : g):

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
from inrun.optim._rule import Live, entering, numbers_of


class RpropState(NamedTuple):
    """The gradient before (0 where it was dropped) and the step sizes."""

    previous: Tensor
    size: Tensor


class RpropSetting(NamedTuple):
    """The parameter group's numbers."""

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
