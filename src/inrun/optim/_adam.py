"""Adam and AdamW as `torch.optim` does them, with amsgrad, maximize and either kind of decay.

Letters: x = (maximize ? -g : g) + e the gradient that enters the moments, e = decay * w where decay
is coupled (Adam's L2) and 0 where it is not (AdamW); b1, b2 the betas; t the step's number from 1;
c1 = 1 - b1^t, c2 = 1 - b2^t.

    M(x) = b1 m + (1 - b1) x
    V(x) = b2 v + (1 - b2) x^2, with amsgrad max(v_max, that)
    A(x) = sqrt(V(x) / c2) + eps
    d    = lr / c1 * M(x) / A(x)  [+ lr * decay * w where decay is not coupled]

The slope is written out so that nothing cancels: with x = e + y,

    (M(x)/A(x) - M(e)/A(e)) / y = (1 - b1)/A(x) - M(e) * ((V(x) - V(e))/y) / (c2 (r + r0) A(x) A(e))

where r = sqrt(V(x)/c2), r0 = sqrt(V(e)/c2), and (V(x) - V(e))/y = (1 - b2)(y + 2e) without amsgrad.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._rule import History, Rule
from inrun.optim._slope import Diagonal


class AdamState(NamedTuple):
    """Moments before the step, and how many steps they have seen."""

    m: Tensor
    v: Tensor
    v_max: Tensor | None
    steps: int


class AdamSetting(NamedTuple):
    """The parameter group's numbers. `coupled`: decay is added to the gradient (Adam's L2)."""

    lr: float
    b1: float
    b2: float
    eps: float
    decay: float
    coupled: bool
    maximize: bool


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator / denominator, and 0 where the denominator is 0."""
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / denominator)


class AdamRule(Rule[AdamState, AdamSetting]):
    """`torch.optim.Adam` and `torch.optim.AdamW`; which of the two is read from the group."""

    linearizes = True

    def __init__(self, *, decoupled: bool):
        self._decoupled = decoupled

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdamState, AdamSetting]:
        """See `Rule.read`."""
        b1, b2 = group["betas"]
        setting = AdamSetting(
            lr=float(group["lr"]),
            b1=float(b1),
            b2=float(b2),
            eps=float(group["eps"]),
            decay=float(group["weight_decay"]),
            coupled=not group.get("decoupled_weight_decay", self._decoupled),
            maximize=group["maximize"],
        )
        if not state:
            zero = torch.zeros_like(weight)
            return AdamState(zero, zero, zero if group["amsgrad"] else None, 0), setting
        largest = state["max_exp_avg_sq"] if group["amsgrad"] else None
        moments = AdamState(state["exp_avg"], state["exp_avg_sq"], largest, int(state["step"]))
        return moments, setting

    def _entering(self, w: Tensor, h: AdamSetting) -> Tensor | float:
        """e: what coupled decay adds to the gradient."""
        return h.decay * w if h.coupled and h.decay else 0.0

    def _second(self, x: Tensor | float, s: AdamState, h: AdamSetting) -> Tensor:
        """V(x)."""
        v = h.b2 * s.v
        if isinstance(x, Tensor):
            v = torch.addcmul(v, x, x, value=1 - h.b2)
        return v if s.v_max is None else torch.maximum(s.v_max, v)

    def _root(self, second: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        """sqrt(V / c2)."""
        return (second * (1 / (1 - h.b2 ** (s.steps + 1)))).sqrt_()

    def _rate(self, s: AdamState, h: AdamSetting) -> float:
        """Lr / c1."""
        return h.lr / (1 - h.b1 ** (s.steps + 1))

    def displacement(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        """See `Rule.displacement`."""
        x = (-g if h.maximize else g) + self._entering(w, h)
        first = h.b1 * s.m + (1 - h.b1) * x
        moved = self._rate(s, h) * first / (self._root(self._second(x, s, h), s, h) + h.eps)
        return moved if h.coupled else moved + h.lr * h.decay * w

    def history(self, w: Tensor, s: AdamState, h: AdamSetting) -> History:
        """See `Rule.history`."""
        rate = self._rate(s, h) * h.b1
        denominator = self._root(self._second(0.0, s, h), s, h).add_(h.eps)
        momentum = (s.m / denominator).mul_(rate) if h.eps else rate * _over(s.m, denominator)
        if not h.decay:
            return History(momentum, 0.0)
        if not h.coupled:
            return History(momentum, h.lr * h.decay * w)
        whole = self.displacement(torch.zeros_like(w), w, s, h)
        return History(momentum, whole - momentum)

    def _second_slope(self, y: Tensor, e: Tensor | float, s: AdamState, h: AdamSetting) -> Tensor:
        """(V(e + y) - V(e)) / y."""
        smooth = (1 - h.b2) * (y + 2 * e)
        if s.v_max is None:
            return smooth
        before, after = self._second(e, s, h), self._second(e + y, s, h)
        free = (before > s.v_max) & (after > s.v_max)
        return torch.where(free, smooth, _over(after - before, y))

    def slope(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        """See `Rule.slope`."""
        y, e = -g if h.maximize else g, self._entering(w, h)
        over_c2 = 1 / (1 - h.b2 ** (s.steps + 1))
        if isinstance(e, float) and s.v_max is None:  # nothing but the gradient enters
            r0 = s.v * (h.b2 * over_c2)
            r = torch.addcmul(r0, y, y, value=(1 - h.b2) * over_c2)
            bend, gain = s.m * y, h.b1 * (1 - h.b2) * over_c2
        else:
            r0, r = self._second(e, s, h) * over_c2, self._second(e + y, s, h) * over_c2
            carried = h.b1 * s.m + (1 - h.b1) * e
            bend, gain = carried.mul_(self._second_slope(y, e, s, h)), over_c2
        r0, r = r0.sqrt_(), r.sqrt_()
        both = r + r0
        bend = bend.div_(both).div_(r0.add_(h.eps))
        if h.eps == 0:
            bend.nan_to_num_(nan=0.0)  # nothing before, so nothing carried: 0 / 0
        rate = (-1.0 if h.maximize else 1.0) * self._rate(s, h)
        slope = bend.mul_(-gain * rate).add_((1 - h.b1) * rate).div_(r.add_(h.eps))
        return Diagonal(slope.masked_fill_(both == 0, 0.0))

    def tangent(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        """See `Rule.tangent`."""
        sign = -1.0 if h.maximize else 1.0
        x = sign * g + self._entering(w, h)
        second = self._second(x, s, h)
        r = self._root(second, s, h)
        a = r + h.eps
        first = h.b1 * s.m + (1 - h.b1) * x
        bend = _over((1 - h.b2) * x * first, (1 - h.b2 ** (s.steps + 1)) * r * a * a)
        if s.v_max is not None:
            bend = torch.where(second > s.v_max, bend, torch.zeros_like(bend))
        tangent = sign * self._rate(s, h) * (_over(torch.full_like(a, 1 - h.b1), a) - bend)
        return Diagonal(torch.where(r == 0, torch.zeros_like(tangent), tangent))

    def _previous(self, numerator: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        """Numerator / (sqrt of the previous step's v_hat + eps), 0 where that v is 0."""
        second = s.v if s.v_max is None else s.v_max
        root = (second / (1 - h.b2 ** max(s.steps, 1))).sqrt_()
        return torch.where(root == 0, torch.zeros_like(root), numerator / (root + h.eps))

    def linearization(self, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        """Lr * C / A of arXiv 2602.00329, C = (1-b1)/c1, A = sqrt(v_hat of step t-1) + eps.

        Where v is 0 the published A is eps alone and the estimate is off by orders of magnitude;
        such elements count 0 here.
        """
        sign = -1.0 if h.maximize else 1.0
        gain = torch.full_like(w, sign * self._rate(s, h) * (1 - h.b1))
        return Diagonal(self._previous(gain, s, h))

    def linearized_history(self, w: Tensor, s: AdamState, h: AdamSetting) -> History:
        """Lr * b1 m / (c1 A), the estimator's term that is the same for all samples, and decay."""
        momentum = self._previous(self._rate(s, h) * h.b1 * s.m, s, h)
        if not h.decay:
            return History(momentum, 0.0)
        if not h.coupled:
            return History(momentum, h.lr * h.decay * w)
        return History(momentum, self._previous(self._rate(s, h) * (1 - h.b1) * h.decay * w, s, h))

    def advance(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> AdamState:
        """See `Rule.advance`."""
        x = (-g if h.maximize else g) + self._entering(w, h)
        second = h.b2 * s.v + (1 - h.b2) * x * x
        largest = None if s.v_max is None else torch.maximum(s.v_max, second)
        return AdamState(h.b1 * s.m + (1 - h.b1) * x, second, largest, s.steps + 1)

    def steps_taken(self, s: AdamState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps
