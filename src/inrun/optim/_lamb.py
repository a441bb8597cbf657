"""LAMB as `pytorch_optimizer` does it (version 3 of the paper): Adam's update, scaled per tensor.

With x = (maximize ? -g : g), M = b1 m + b3 x, V = b2 v + (1 - b2) x^2, w0 = (1 - apart) w the
decayed weights (where decay is decoupled, else w0 = w):

    u = M / (sqrt(V) + eps)  [+ decay * w where decay is coupled]
    d = lr / (1 - b1^t) * trust * u + w - w0
    trust = min(|w0|, 10) / (|u| + eps), or 1 where either norm is 0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inrun.optim._jacobian import MatrixRule
from inrun.optim._rule import Live, numbers_of


class LambState(NamedTuple):
    """Adam's moments."""

    m: Tensor
    v: Tensor
    steps: int


class LambSetting(NamedTuple):
    """The group's numbers. `decay` joins the update; `apart` shrinks the weights."""

    lr: float
    rate: float
    b1: float
    b2: float
    entering: float
    eps: float
    decay: float
    apart: float
    trusted: bool
    maximize: bool


LARGEST_NORM = 10.0


class LambRule(MatrixRule[LambState, LambSetting]):
    """`pytorch_optimizer.Lamb`; `maximize` is kept on the optimizer there."""

    def __init__(self, *, maximize: bool):
        self._maximize = maximize

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[LambState, LambSetting]:
        lr, decay, eps = numbers_of(group, "lr", "weight_decay", "eps")
        steps, apart, (b1, b2) = int(group.get("step", 0)), group["weight_decouple"], group["betas"]
        debias = 1.0 if group.get("adam_debias") else 1 - b1 ** (steps + 1)
        setting = LambSetting(
            lr=lr,
            rate=lr / debias,
            b1=float(b1),
            b2=float(b2),
            entering=1.0 - b1 if group["grad_averaging"] else 1.0,
            eps=eps,
            decay=0.0 if apart else decay,
            apart=decay * (1.0 if group["fixed_decay"] else lr) if apart else 0.0,
            trusted=group["adam"],
            maximize=self._maximize,
        )
        nothing = torch.zeros_like(weight)
        first, second = state.get("exp_avg", nothing), state.get("exp_avg_sq", nothing)
        return LambState(first, second, steps), setting

    def advance(self, g: Tensor, w: Tensor, s: LambState, h: LambSetting) -> LambState:
        x = -g if h.maximize else g
        return LambState(h.b1 * s.m + h.entering * x, h.b2 * s.v + (1 - h.b2) * x * x, s.steps + 1)

    def displacement(self, g: Tensor, w: Tensor, s: LambState, h: LambSetting) -> Tensor:
        after, decayed = self.advance(g, w, s, h), (1 - h.apart) * w
        # the root has no derivative at 0, where nothing has touched an element: none is passed on
        touched = after.v > 0
        root = torch.where(touched, after.v, torch.ones_like(w)).sqrt()
        update = after.m / (torch.where(touched, root, torch.zeros_like(w)) + h.eps)
        update = update + h.decay * decayed
        norm, size = decayed.norm().clamp(max=LARGEST_NORM), update.norm()
        trust = torch.where((norm > 0) & (size > 0), norm / (size + h.eps), torch.ones_like(norm))
        if h.trusted:
            trust = torch.ones_like(trust)
        return h.rate * trust * update + w - decayed
