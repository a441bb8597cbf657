"""Adamax, NAdam and RAdam as `torch.optim` does them: Adam's moments, put together otherwise.

With x = (maximize ? -g : g) + e, e = decay * w where decay is coupled, t the step's number from 1,
M = b1 m + (1 - b1) x, V = b2 v + (1 - b2) x^2, c1 = 1 - b1^t, c2 = 1 - b2^t:

    Adamax  d = lr / c1 * M / max(b2 u, |x| + eps)
    NAdam   d = lr * ((1 - mu) / (1 - P) * x + mu' / (1 - P mu') * M) / (sqrt(V / c2) + eps)
    RAdam   d = lr / c1 * M * (rho > 5 ? rectification * sqrt(c2) / (sqrt(V) + eps) : 1)

mu and mu' are NAdam's momentum factors of this step and the next, P their product up to this one;
rho is the length of RAdam's second moment in steps. Where decay is not coupled, lr * decay * w is
added to d.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._divided import ElementwiseRule
from inrun.optim._rule import Memory, steps_seen
from inrun.optim._second_moments import entering


class MomentsState(NamedTuple):
    """First and second moment (Adamax: the largest size instead) before the step.

    `product`: NAdam's P up to the step before, a number in a tensor, rounded as the optimizer does.
    """

    m: Tensor
    v: Tensor
    product: Tensor | None
    steps: int


class MomentsSetting(NamedTuple):
    """The parameter group's numbers. `apart`: the decay of the weights that is not coupled."""

    lr: float
    b1: float
    b2: float
    eps: float
    decay: float
    apart: float
    momentum_decay: float
    maximize: bool


class _MomentsRule(ElementwiseRule[MomentsState, MomentsSetting]):
    """What the three have in common."""

    remembers = True
    second = "exp_avg_sq"
    multiplies = False

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[MomentsState, MomentsSetting]:
        """See `Rule.read`."""
        decay, apart = float(group["weight_decay"]), bool(group.get("decoupled_weight_decay"))
        setting = MomentsSetting(
            lr=float(group["lr"]),
            b1=float(group["betas"][0]),
            b2=float(group["betas"][1]),
            eps=float(group["eps"]),
            decay=0.0 if apart else decay,
            apart=decay if apart else 0.0,
            momentum_decay=float(group.get("momentum_decay", 0.0)),
            maximize=group["maximize"],
        )
        nothing = torch.zeros_like(weight)
        return MomentsState(
            state.get("exp_avg", nothing),
            state.get(self.second, nothing),
            state.get("mu_product", torch.ones(())) if self.multiplies else None,
            steps_seen(state),
        ), setting

    def _first(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        return h.b1 * s.m + (1 - h.b1) * x

    def _second(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        return h.b2 * s.v + (1 - h.b2) * (x * x)

    @abstractmethod
    def _update(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        """The displacement but for the learning rate and decay."""

    def displacement(self, g: Tensor, w: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        """See `Rule.displacement`."""
        moved = h.lr * self._update(entering(g, w, h), s, h)
        return moved + h.lr * h.apart * w if h.apart else moved

    def without_decay(self, h: MomentsSetting) -> MomentsSetting:
        """See `Rule.without_decay`."""
        return h._replace(decay=0.0, apart=0.0)

    def memory(self, w: Tensor, s: MomentsState, h: MomentsSetting) -> Memory:
        """See `Rule.memory`: d(0) is proportional to m, so it is d(0) with m = 1."""
        enters, unit = (-1.0 if h.maximize else 1.0) * (1 - h.b1), s._replace(m=torch.ones_like(w))
        slope = self.displacement(torch.zeros_like(w), w, unit, self.without_decay(h))
        # where v is 0, so was every gradient; where nothing is left of it d(0) counts 0
        acts = (s.v > 0) & torch.isfinite(slope)
        return Memory(torch.where(acts, slope, 0.0), h.b1, enters)

    def memorized(self, s: MomentsState) -> Tensor | None:
        """See `Rule.memorized`."""
        return s.m if s.steps else None

    def advance(self, g: Tensor, w: Tensor, s: MomentsState, h: MomentsSetting) -> MomentsState:
        """See `Rule.advance`."""
        x = entering(g, w, h)
        return MomentsState(self._first(x, s, h), self._second(x, s, h), None, s.steps + 1)

    def steps_taken(self, s: MomentsState) -> int | None:
        """See `Rule.steps_taken`."""
        return s.steps

    def window(self, s: MomentsState, h: MomentsSetting) -> float:
        """See `Rule.window`."""
        return 1 / (1 - h.b2)


class AdamaxRule(_MomentsRule):
    """`torch.optim.Adamax`."""

    second = "exp_inf"

    def _second(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        return torch.maximum(abs(x) + h.eps, h.b2 * s.v)

    def _update(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        return self._first(x, s, h) / (1 - h.b1 ** (s.steps + 1)) / self._second(x, s, h)


class NAdamRule(_MomentsRule):
    """`torch.optim.NAdam`."""

    multiplies = True

    def _factors(self, s: MomentsState, h: MomentsSetting) -> tuple[float, float, Tensor]:
        """Mu, mu' and P."""
        now, following = (
            h.b1 * (1.0 - 0.5 * 0.96 ** ((s.steps + k) * h.momentum_decay)) for k in (1, 2)
        )
        assert s.product is not None
        return now, following, s.product * now

    def _update(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        now, following, product = self._factors(s, h)
        whole = float(product)
        root = torch.sqrt(self._second(x, s, h) / (1 - h.b2 ** (s.steps + 1))) + h.eps
        ahead = following / (1 - whole * following) * self._first(x, s, h)
        return ((1 - now) / (1 - whole) * x + ahead) / root

    def advance(self, g: Tensor, w: Tensor, s: MomentsState, h: MomentsSetting) -> MomentsState:
        """See `Rule.advance`."""
        return super().advance(g, w, s, h)._replace(product=self._factors(s, h)[2])


class RAdamRule(_MomentsRule):
    """`torch.optim.RAdam`: momentum alone while the second moment is young."""

    def _rectification(self, s: MomentsState, h: MomentsSetting) -> float | None:
        """What the second moment's step is multiplied by; None while momentum alone acts."""
        step, most = s.steps + 1, 2 / (1 - h.b2) - 1
        rho = most - 2 * step * h.b2**step / (1 - h.b2**step)
        if rho <= 5:
            return None
        return math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))

    def _update(self, x: Tensor, s: MomentsState, h: MomentsSetting) -> Tensor:
        step, rectification = s.steps + 1, self._rectification(s, h)
        first = self._first(x, s, h) / (1 - h.b1**step)
        if rectification is None:
            return first
        root = torch.sqrt(self._second(x, s, h)) + h.eps
        return first / root * (rectification * math.sqrt(1 - h.b2**step))

    def age(self, s: MomentsState, h: MomentsSetting) -> int | None:
        """See `Rule.age`; None while momentum alone acts."""
        return None if self._rectification(s, h) is None else super().age(s, h)
