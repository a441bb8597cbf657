"""Optimizers that average weights: ASGD of `torch.optim`, schedule-free AdamW of `schedulefree`.

ASGD, with eta its present rate (its average does not act on the weights):

    d = eta * (x + lambd * w),   x = (maximize ? -g : g) + decay * w

Schedule-free AdamW trains the weights y between the fast sequence z and its average. With
c = weight_t / (sum of weights), V = b2 v + (1 - b2) g^2, u = g / (sqrt(V / (1 - b2^t)) + eps) +
decay * y:

    d = c * (y - z) + lr * (1 - b1 (1 - c)) * u

What is scored is y, the weights that the optimizer trains; `optimizer.eval()` moves the model to
another point, the average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._divided import ElementwiseRule
from inrun.optim._rule import Rule
from inrun.optim._second_moments import entering
from inrun.optim._slope import Diagonal


class ASGDState(NamedTuple):
    """The rate of the coming step, and how many were taken."""

    eta: float
    steps: int


class ASGDSetting(NamedTuple):
    """The parameter group's numbers."""

    lr: float
    lambd: float
    alpha: float
    decay: float
    maximize: bool


class ASGDRule(Rule[ASGDState, ASGDSetting]):
    """`torch.optim.ASGD`: d is affine in g."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[ASGDState, ASGDSetting]:
        """See `Rule.read`."""
        setting = ASGDSetting(
            lr=float(group["lr"]),
            lambd=float(group["lambd"]),
            alpha=float(group["alpha"]),
            decay=float(group["weight_decay"]),
            maximize=group["maximize"],
        )
        if not state:
            return ASGDState(_rounded(setting.lr), 0), setting
        return ASGDState(float(state["eta"]), int(state["step"])), setting

    def displacement(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> Tensor:
        """See `Rule.displacement`."""
        return s.eta * entering(g, w, h) + s.eta * h.lambd * w

    def without_decay(self, h: ASGDSetting) -> ASGDSetting:
        """See `Rule.without_decay`; `lambd` is a decay by another name."""
        return h._replace(decay=0.0, lambd=0.0)

    def slope(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> Diagonal:
        """See `Rule.slope`."""
        return Diagonal(-s.eta if h.maximize else s.eta)

    def tangent(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> Diagonal:
        """See `Rule.tangent`."""
        return self.slope(g, w, s, h)

    def advance(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> ASGDState:
        """See `Rule.advance`."""
        eta = h.lr / (1 + h.lambd * h.lr * (s.steps + 1)) ** h.alpha
        return ASGDState(_rounded(eta), s.steps + 1)

    def steps_taken(self, s: ASGDState) -> None:
        """See `Rule.steps_taken`."""
        return


def _rounded(eta: float) -> float:
    """As the optimizer keeps it: a tensor of the default precision."""
    return float(torch.tensor(eta))


class ScheduleFreeState(NamedTuple):
    """The fast sequence and the second moment."""

    z: Tensor
    v: Tensor
    steps: int


class ScheduleFreeSetting(NamedTuple):
    """The parameter group's numbers; `lr` after warm-up, `share` is c."""

    lr: float
    b1: float
    b2: float
    eps: float
    decay: float
    share: float
    maximize: bool = False


class ScheduleFreeAdamWRule(ElementwiseRule[ScheduleFreeState, ScheduleFreeSetting]):
    """`schedulefree.AdamWScheduleFree`."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[ScheduleFreeState, ScheduleFreeSetting]:
        """See `Rule.read`."""
        k, warmup = int(group["k"]), group["warmup_steps"]
        lr = float(group["lr"]) * ((k + 1) / warmup if k < warmup else 1.0)
        largest = max(lr, group["lr_max"])
        part = (k + 1) ** group["r"] * largest ** group["weight_lr_power"]
        total = group["weight_sum"] + part
        setting = ScheduleFreeSetting(
            lr=lr,
            b1=float(group["betas"][0]),
            b2=float(group["betas"][1]),
            eps=float(group["eps"]),
            decay=float(group["weight_decay"]),
            share=part / total if total else 0.0,
        )
        v = state.get("exp_avg_sq", torch.zeros_like(weight))
        return ScheduleFreeState(state.get("z", weight), v, k), setting

    def _second(self, g: Tensor, s: ScheduleFreeState, h: ScheduleFreeSetting) -> Tensor:
        return h.b2 * s.v + (1 - h.b2) * (g * g)

    def _update(self, g: Tensor, w: Tensor, s: ScheduleFreeState, h: ScheduleFreeSetting) -> Tensor:
        root = torch.sqrt(self._second(g, s, h) / (1 - h.b2 ** (s.steps + 1))) + h.eps
        return g / root + h.decay * w

    def displacement(
        self, g: Tensor, w: Tensor, s: ScheduleFreeState, h: ScheduleFreeSetting
    ) -> Tensor:
        """See `Rule.displacement`."""
        moved = h.lr * (1 - h.b1 * (1 - h.share)) * self._update(g, w, s, h)
        return moved + h.share * (w - s.z)

    def advance(
        self, g: Tensor, w: Tensor, s: ScheduleFreeState, h: ScheduleFreeSetting
    ) -> ScheduleFreeState:
        """See `Rule.advance`."""
        z = s.z - h.lr * self._update(g, w, s, h)
        return ScheduleFreeState(z, self._second(g, s, h), s.steps + 1)

    def steps_taken(self, s: ScheduleFreeState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps

    def window(self, s: ScheduleFreeState, h: ScheduleFreeSetting) -> float:
        """See `Rule.window`."""
        return 1 / (1 - h.b2)
