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

Where eps is 0, or too small to matter, r0 may be 0: then d(e) has nothing to divide by and counts 0
(`Rule`), and the slope is d / y. Such settings are worked out in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.kernels import SettlingNumbers, SlopeNumbers, passes_for
from inrun.optim._rule import History, Memory, Move, Rule, Settled
from inrun.optim._slope import Diagonal

MOST_DECAY = 0.5  # of a weight in one step, if what it was is to be told from what it became


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


NO_EPS = 1e-15  # roots of float32's smallest numbers are no smaller than a ten-thousandth of it


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Numerator / denominator, and 0 where the denominator is 0."""
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / denominator)


def _tiny(t: Tensor) -> float:
    """The smallest number with all its digits. Roots of smaller ones, and of 0, are slow."""
    return float(torch.finfo(t.dtype).tiny)


def _touched_root(second: Tensor) -> Tensor:
    """The root, in place, and infinite where nothing ever touched the element: slopes are 0."""
    return torch.threshold_(second.sqrt_(), _untouched(second), float("inf"))


def _untouched(second: Tensor) -> float:
    """The largest root that says so: that of `_tiny`, but for rounding."""
    return float(1.01 * _tiny(second) ** 0.5)


class AdamRule(Rule[AdamState, AdamSetting]):
    """`torch.optim.Adam` and `torch.optim.AdamW`; which of the two is read from the group."""

    linearizes = remembers = True

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
            zero = weight.new_zeros(()).expand_as(weight)  # one number, however large the weight
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
        return History(momentum, self.without_gradient(w, s, h) - momentum)

    def memory(self, w: Tensor, s: AdamState, h: AdamSetting) -> Memory:
        """See `Rule.memory`: lr b1 / (c1 A(0))."""
        enters = (-1.0 if h.maximize else 1.0) * (1 - h.b1)
        if not s.steps:
            return Memory(0.0, h.b1, enters)
        second = self._second(0.0, s, h)
        if h.eps < NO_EPS:
            second = second.double()
        second = second.mul_(1 / (1 - h.b2 ** (s.steps + 1))).clamp_(min=_tiny(second))
        denominator = _touched_root(second).add_(h.eps)
        slope = denominator.reciprocal_().mul_(self._rate(s, h) * h.b1)
        return Memory(slope.to(w.dtype), h.b1, enters)

    def memorized(self, s: AdamState) -> Tensor | None:
        """See `Rule.memorized`."""
        return s.m if s.steps else None

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
        if h.eps < NO_EPS:
            return self._slope_without_eps(g, w, s, h)
        y, e = -g if h.maximize else g, self._entering(w, h)
        over_c2 = 1 / (1 - h.b2 ** (s.steps + 1))
        rate = (-1.0 if h.maximize else 1.0) * self._rate(s, h)
        if isinstance(e, float) and s.v_max is None:  # nothing but the gradient enters
            r0 = s.v * (h.b2 * over_c2)
            r = torch.addcmul(r0, y, y, value=(1 - h.b2) * over_c2)
            bend, gain = s.m * y, h.b1 * (1 - h.b2) * over_c2
        else:
            r0, r = self._second(e, s, h) * over_c2, self._second(e + y, s, h) * over_c2
            carried = h.b1 * s.m + (1 - h.b1) * e
            bend, gain = carried.mul_(self._second_slope(y, e, s, h)), over_c2
        r0, r = r0.clamp_(min=_tiny(r0)).sqrt_(), _touched_root(r.clamp_(min=_tiny(r)))
        bend = bend.div_(r + r0).div_(r0.add_(h.eps))
        slope = bend.mul_(-gain * rate).add_((1 - h.b1) * rate).div_(r.add_(h.eps))
        return Diagonal(slope)

    def _slope_without_eps(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        """The slope where the second moment alone divides, and may be nothing without g."""
        largest = None if s.v_max is None else s.v_max.double()
        s, kind = AdamState(s.m.double(), s.v.double(), largest, s.steps), g.dtype
        g, w = g.double(), w.double()
        y, e = -g if h.maximize else g, self._entering(w, h)
        over_c2 = 1 / (1 - h.b2 ** (s.steps + 1))
        r0, r = ((self._second(x, s, h) * over_c2).sqrt_() for x in (e, e + y))
        carried = h.b1 * s.m + (1 - h.b1) * e
        bent = carried * self._second_slope(y, e, s, h) * over_c2
        bent = bent / (r + r0) / (r0 + h.eps)
        bent = torch.where(r0 + h.eps > 0, bent, -_over(carried, y))  # d(e) counts 0
        slope = _over((1 - h.b1) - bent, r + h.eps) * self._rate(s, h)
        slope = torch.where(r > 0, slope, 0.0)
        return Diagonal((-slope if h.maximize else slope).to(kind))

    def slope_at_once(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal | None:
        """See `Rule.slope_at_once`: where nothing but the gradient enters."""
        plain = s.v_max is None and not (h.coupled and h.decay) and h.eps >= NO_EPS
        passes = passes_for(g, s.m, s.v) if plain else None
        if passes is None:
            return None
        over_c2, sign = 1 / (1 - h.b2 ** (s.steps + 1)), -1.0 if h.maximize else 1.0
        rate = self._rate(s, h)
        numbers = SlopeNumbers(
            tiny=_tiny(g),
            untouched=_untouched(g),
            kept=h.b2 * over_c2,
            entering=(1 - h.b2) * over_c2,
            eps=h.eps,
            bend=-h.b1 * (1 - h.b2) * over_c2 * rate,
            gain=sign * (1 - h.b1) * rate,
        )
        coefficient = passes.adam_slope(g, s.m, s.v, numbers)
        return None if coefficient is None else Diagonal(coefficient)

    def settles(self, s: AdamState, h: AdamSetting) -> bool:
        """See `Rule.settles`: where the moments alone say what was before, to enough digits."""
        precise = s.m.dtype in (torch.float32, torch.float64) and s.v.dtype == s.m.dtype
        plain = s.v_max is None and not (h.coupled and h.decay)
        # what b2 v or (1 - lr decay) w is a small part of has lost its digits after the step
        told = h.eps >= NO_EPS and h.b2 >= 0.5 and abs(h.lr * h.decay) <= MOST_DECAY
        return precise and plain and told

    def settled(
        self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting, scale: float | None = 1.0
    ) -> Settled:
        """See `Rule.settled`.

        With m' and v' after the step, b1 m = m' - (1 - b1) y and b2 v = v' - (1 - b2) y^2. Where y
        is a thousand times larger than the root of v the second difference has lost its digits. It
        is kept above its rounding, so that an element without a history has none here.
        """
        n = self._settling(s, h, 1.0 if scale is None else scale)
        r = s.v.clamp(min=n.tiny).sqrt_()
        r = torch.threshold_(r, n.untouched, float("inf"))
        slope, momentum = None, None
        if s.steps == 1:  # no history: the slope is the step itself
            r.add_(n.eps)
            if scale is not None:
                slope = torch.reciprocal(r).mul_(n.gain)
        else:
            r0 = torch.addcmul(s.v, g, g, value=-n.second).clamp_(min=n.tiny).sqrt_()
            slope = None if scale is None else g / (r + r0)
            r, r0 = r.add_(n.eps), r0.add_(n.eps)
            momentum = torch.sub(s.m, g, alpha=n.first).div_(r0)
            if slope is not None:
                gain = slope.new_full((), n.gain)  # filled where it is: nothing waits for a copy
                torch.addcmul(gain, slope, momentum, value=n.bend, out=slope)
                slope.div_(r)
        if not h.decay:
            return Settled(slope, momentum, n.rate, None, 0.0)
        before = torch.addcdiv(w, s.m, r, value=n.rate)  # times 1 - lr decay
        return Settled(slope, momentum, n.rate, before, h.lr * h.decay / (1 - h.lr * h.decay))

    @staticmethod
    def _settling(s: AdamState, h: AdamSetting, scale: float) -> SettlingNumbers:
        """The numbers of a step that was taken: s.steps counts it already."""
        root = (1 - h.b2**s.steps) ** 0.5
        sign, rate = (-1.0 if h.maximize else 1.0), h.lr * root / (1 - h.b1**s.steps)
        return SettlingNumbers(
            tiny=_tiny(s.v),
            untouched=_untouched(s.v),
            eps=h.eps * root,
            second=(1 - h.b2) * (1 - 4 * torch.finfo(s.v.dtype).eps),
            first=sign * (1 - h.b1),
            gain=scale * sign * rate * (1 - h.b1),
            bend=0.0 if s.steps == 1 else scale * rate * (h.b2 - 1),
            rate=rate,
            of_momentum=0.0 if s.steps == 1 else rate / 2,
            of_decay=h.lr * h.decay / (1 - h.lr * h.decay) / 2,
        )

    def settled_at_once(
        self,
        after: Move[AdamState, AdamSetting],
        opening_K: Tensor,
        closing_K: Tensor,
        directions_K: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor] | None:
        """See `Rule.settled_at_once`."""
        s, g, w = after.state, after.gradient, after.weight
        written = [] if directions_K is None else [directions_K]
        passes = passes_for(g, w, s.m, s.v, opening_K, closing_K, *written)
        if passes is None:
            return None
        numbers = self._settling(s, after.setting, scale / 2)  # of two gradients passes take sums
        did = passes.settle_adam(g, w, s.m, s.v, opening_K, closing_K, directions_K, numbers)
        return None if did is None else (did[0], did[1])

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

    def window(self, s: AdamState, h: AdamSetting) -> float:
        """See `Rule.window`."""
        return 1 / (1 - h.b2) if s.v_max is None else math.inf  # a maximum forgets nothing
