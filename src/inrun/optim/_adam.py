"""Adam's forms that are written out for speed, each for what most runs are made of.

Letters and the step itself are in `_moments.py`.

- The slope where nothing but the gradient enters, e = 0, without amsgrad:
  (1 - b1)/A(x) - b1 m (1 - b2) x / (c2 (r + r0) A(x) A(0)), r = sqrt(V(x)/c2), r0 = sqrt(V(0)/c2);
- the same told from the moments after the step (`AfterAdam`);
- the derivative in weight, moments and gradient (`AdamDerivative`), where autograd would give
  0 * inf on elements that nothing has touched yet (sqrt at 0). There the slope counts 0. With
  M and V the new moments, r = sqrt(V/c2), A = r + eps, primes for what is after the step:

    push   dM = b1 dm + (1 - b1) dx,   dV = b2 dv + 2 (1 - b2) x dx,   dx = +-dg [+ decay dw]
           dw' = (1 - lr apart) dw - lr/c1 (dM / A - M dV / (2 c2 r A^2))
    pull   aM = am' - lr/c1 aw' / A,   aV = av' + lr/c1 M aw' / (2 c2 r A^2)
           q = +-((1 - b1) aM + 2 (1 - b2) x aV),   am = b1 aM,   av = b2 aV

Where eps is 0, or too small to matter, r0 may be 0: then d(e) has nothing to divide by and counts 0
(`Rule`). Such settings are worked out in double precision.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.optim._derivative import Along, PostStepTerms, StepDerivative
from inrun.optim._moments import AdamSetting, AdamState, MomentsRule, corrections
from inrun.optim._move import Move, changed
from inrun.optim._post_step_terms import AdamPostStepTerms
from inrun.optim._rule import Diagonal, History, Linearized, PostStep, Slope, entering

MOST_DECAY = 0.5  # of a weight in one step, if what it was is to be told from what it became
NO_EPS = 1e-15  # roots of float32's smallest numbers are no smaller than a ten-thousandth of it


def _tiny(t: Tensor) -> float:
    """The smallest number with all its digits. Roots of smaller ones, and of 0, are slow."""
    return float(torch.finfo(t.dtype).tiny)


def _untouched(t: Tensor) -> float:
    """The largest root that says that nothing ever touched an element: `_tiny`'s, but rounded."""
    return float(1.01 * _tiny(t) ** 0.5)


class AfterAdam(PostStep):
    """Slope and history from Adam's moments after the step.

    With m' and v' after the step, b1 m = m' - (1 - b1) y and b2 v = v' - (1 - b2) y^2. Where y is a
    thousand times larger than the root of v the second difference has lost its digits. It is kept
    above its rounding, so that an element without a history has none here. Roots and eps are
    multiplied by sqrt(c2), which the numbers take account of.
    """

    def defined(self, s: AdamState, h: AdamSetting) -> bool:
        """See `PostStep.defined`: where the moments say what was before, to enough digits."""
        precise = s.m.dtype in (torch.float32, torch.float64) and s.v.dtype == s.m.dtype
        # what b2 v or (1 - lr apart) w is a small part of has lost its digits after the step
        told = h.eps >= NO_EPS and h.b2 >= 0.5 and abs(h.lr * h.apart) <= MOST_DECAY
        return precise and s.v_max is None and not h.decay and told

    def arrays(self, s: AdamState) -> tuple[Tensor, ...]:
        return s.m, s.v

    def numbers(self, s: AdamState, h: AdamSetting, scale: float = 1.0) -> tuple[float, ...]:
        """See `PostStep.numbers`; s.steps counts the step already. The first has no momentum."""
        c1, c2 = corrections(s.steps, h)
        sign, rate = (-1.0 if h.maximize else 1.0), h.lr * c2**0.5 / c1
        first, shrunk = s.steps == 1, h.lr * h.apart
        return (
            _tiny(s.v), _untouched(s.v), h.eps * c2**0.5,
            (1 - h.b2) * (1 - 4 * torch.finfo(s.v.dtype).eps), sign * (1 - h.b1),
            scale * sign * rate * (1 - h.b1), 0.0 if first else scale * rate * (h.b2 - 1),
            rate, 0.0 if first else rate, shrunk / (1 - shrunk),
        )  # fmt: skip

    @staticmethod
    def terms(
        g: Tensor, w: Tensor, m: Tensor, v: Tensor, numbers: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, what momentum and what decay displaced; elementwise, compiled where large."""
        tiny, untouched, eps, second, first, gain, bend, rate, of_momentum, of_decay = numbers
        root = v.clamp(min=tiny).sqrt_()
        root_before = (g * g).mul_(-second).add_(v).clamp_(min=tiny).sqrt_()
        slope = g / (root + root_before)
        past = (g * -first).add_(m).div_(root_before.add_(eps))
        inverse = root.masked_fill_(root <= untouched, math.inf).add_(eps).reciprocal_()
        slope.mul_(past).mul_(bend).add_(gain).mul_(inverse)
        before = (m * rate).mul_(inverse).add_(w)
        return slope, past.mul_(of_momentum), before.mul_(of_decay)


class LinearizedAdam(Linearized):
    """Slope lr * C / A of arXiv 2602.00329, C = (1-b1)/c1, A = sqrt(v_hat of step t-1) + eps.

    Where v is 0 the published A is eps alone and the estimate is off by orders of magnitude; such
    elements count 0 here.
    """

    def _over_previous(self, numerator: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        second = s.v if s.v_max is None else s.v_max
        root = (second / corrections(max(s.steps, 1), h)[1]).sqrt_()
        rate = h.lr / corrections(s.steps + 1, h)[0]
        return torch.where(root == 0, 0.0, rate * numerator / (root + h.eps))

    def slope(self, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        gain = torch.full_like(w, (-1.0 if h.maximize else 1.0) * (1 - h.b1))
        return Diagonal(self._over_previous(gain, s, h))

    def history(self, w: Tensor, s: AdamState, h: AdamSetting) -> History:
        """Lr * b1 m / (c1 A), the estimator's term that is the same for all samples, and decay."""
        momentum = self._over_previous(h.b1 * s.m, s, h)
        if h.decay:
            return History(momentum, self._over_previous((1 - h.b1) * h.decay * w, s, h))
        return History(momentum, h.lr * h.apart * w if h.apart else 0.0)


class AdamDerivative(StepDerivative):
    """Adam and AdamW, with amsgrad, maximize and either kind of decay."""

    def moments(self, move: Move[AdamState, AdamSetting]) -> int:
        """M, v, and with amsgrad the largest v."""
        return 2 if move.state.v_max is None else 3

    def _parts(self, move: Move[AdamState, AdamSetting]) -> tuple[Tensor, ...]:
        """(x, 1/A times lr/c1, slope of d in V, where V counts against its maximum)."""
        s, h = move.state, move.setting
        x = entering(move.gradient, move.weight, h)
        first, second = h.b1 * s.m + (1 - h.b1) * x, h.b2 * s.v + (1 - h.b2) * x * x
        free = torch.ones((), dtype=torch.bool, device=x.device)
        if s.v_max is not None:
            free = second > s.v_max
            second = torch.where(free, second, s.v_max)
        c1, c2 = corrections(s.steps + 1, h)
        r = (second / c2).sqrt()
        inverse = h.lr / c1 / (r + h.eps)
        bend = -inverse * first / (2 * c2 * r * (r + h.eps))
        return x, torch.where(r == 0, 0.0, inverse), torch.where(r == 0, 0.0, bend), free

    def pull(self, move: Move[AdamState, AdamSetting], after: Along) -> tuple[Along, Tensor]:
        h = move.setting
        x, inverse, bend, free = self._parts(move)
        a_first = after.moments[0] - after.weight * inverse
        a_second = after.moments[1] - after.weight * bend
        rest: tuple[Tensor, ...] = ()
        if move.state.v_max is not None:  # the maximum takes the place of V where it is larger
            a_largest = after.moments[2] - after.weight * bend
            a_second = after.moments[1] + a_largest * free
            rest = (a_largest * ~free,)
        a_x = (1 - h.b1) * a_first + 2 * (1 - h.b2) * x * a_second
        a_weight = (1 - h.lr * h.apart) * after.weight if h.apart else after.weight
        a_weight = a_weight + h.decay * a_x if h.decay else a_weight
        before = Along(a_weight, (h.b1 * a_first, h.b2 * a_second, *rest))
        return before, -a_x if h.maximize else a_x

    def push(self, move: Move[AdamState, AdamSetting], before: Along, dg: Tensor) -> Along:
        h = move.setting
        x, inverse, bend, free = self._parts(move)
        dx = entering(dg, before.weight, h)
        d_first = h.b1 * before.moments[0] + (1 - h.b1) * dx
        d_second = h.b2 * before.moments[1] + 2 * (1 - h.b2) * x * dx
        counted = d_second
        moments: tuple[Tensor, ...] = (d_first, d_second)
        if move.state.v_max is not None:
            counted = torch.where(free, d_second, before.moments[2])
            moments = (d_first, d_second, counted)
        kept = (1 - h.lr * h.apart) * before.weight
        return Along(kept - inverse * d_first - bend * counted, moments)

    def moved(self, move: Move[AdamState, AdamSetting], gradient: Tensor) -> Along:
        rule, w, h = move.rule, move.weight, move.setting
        state = rule.advance(gradient, w, move.state, h)
        moments = tuple(part for part in state[:3] if isinstance(part, Tensor))
        c1, c2 = corrections(state.steps, h)
        root = (moments[-1] * (1 / c2)).sqrt_().add_(h.eps)
        change = (state.m / root).mul_(-h.lr / c1)
        if not h.eps:  # nothing has touched these elements
            change = torch.where(root == 0, 0.0, change)
        return Along(change.sub_(w, alpha=h.lr * h.apart) if h.apart else change, moments)

    def shifted(
        self, move: Move[AdamState, AdamSetting], moments: tuple[Tensor, ...]
    ) -> Move[AdamState, AdamSetting]:
        """See `StepDerivative.shifted`. Second moments stay above 0, where rounding would not."""
        s, (dm, dv, *rest) = move.state, moments
        largest = None if s.v_max is None else (s.v_max + rest[0]).clamp(min=0)
        state = s._replace(m=s.m + dm, v=(s.v + dv).clamp(min=0), v_max=largest)
        return Move(move.rule, move.weight, move.gradient, state, move.setting)

    def damped(
        self, move: Move[AdamState, AdamSetting], square: Tensor
    ) -> Move[AdamState, AdamSetting]:
        """See `StepDerivative.damped`: second moments as if they had seen `square` as well.

        In the first step, where Adam moves by g / |g|, that is g / sqrt(g^2 + square): the mean of
        the signs of g + d over changes d of density square / (2 (d^2 + square)^(3/2)).
        """
        s, h = move.state, move.setting
        if not h.b2:  # v is forgotten within the step, and with it what would be added to it
            return move
        seen = (1 - h.b2) * square
        largest = None if s.v_max is None else s.v_max + seen
        state = s._replace(v=torch.add(s.v, seen, alpha=1 / h.b2), v_max=largest)
        return Move(move.rule, move.weight, move.gradient, state, move.setting)

    def following(self, move: Move[AdamState, AdamSetting], steps: int) -> PostStepTerms:
        if move.state.v_max is None:
            return AdamPostStepTerms(steps)
        return super().following(move, steps)


class AdamRule(MomentsRule):
    """`torch.optim.Adam` and `torch.optim.AdamW`; which of the two is read from the group."""

    linearized = LinearizedAdam()
    post_step: ClassVar[PostStep | None] = AfterAdam()
    derivative = AdamDerivative()

    def slope(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Diagonal:
        """See `Rule.slope`: written out where nothing but the gradient enters."""
        if h.eps < NO_EPS or h.decay or s.v_max is not None:
            return super().slope(g, w, s, h)
        (c1, c2), sign = corrections(s.steps + 1, h), -1.0 if h.maximize else 1.0
        rate = sign * h.lr / c1
        square = s.v * (h.b2 / c2)
        r = torch.addcmul(square, g, g, value=(1 - h.b2) / c2).clamp_(min=_tiny(square)).sqrt_()
        r = torch.threshold_(r, _untouched(r), float("inf"))  # there the slope is 0
        r0 = square.clamp_(min=_tiny(square)).sqrt_()
        bend = (s.m * g).div_(r + r0).div_(r0.add_(h.eps))
        bend.mul_(-h.b1 * (1 - h.b2) / c2 * sign * rate).add_((1 - h.b1) * rate)
        return Diagonal(bend.div_(r.add_(h.eps)))

    def null_slope(self, w: Tensor, s: AdamState, h: AdamSetting) -> Slope:
        """See `Rule.null_slope`: written out where nothing but the gradient enters."""
        if h.eps < NO_EPS or h.decay or s.v_max is not None:
            return super().null_slope(w, s, h)
        c1, c2 = corrections(s.steps + 1, h)
        gain = (-1.0 if h.maximize else 1.0) * (1 - h.b1) * h.lr / c1
        return Diagonal((s.v * (h.b2 / c2)).sqrt_().add_(h.eps).reciprocal_().mul_(gain))

    def _between(
        self, base: Tensor, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting
    ) -> Diagonal:
        if h.eps >= NO_EPS:
            return super()._between(base, g, w, s, h)
        kind, (base, g, w, s) = g.dtype, changed((base, g, w, s), Tensor.double)
        found = super()._between(base, g, w, s, h).coefficient
        assert isinstance(found, Tensor)
        return Diagonal(found.to(kind))
