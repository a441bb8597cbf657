"""Rules that keep a mean gradient m beside what divides it, and Adam's step, written out once.

Adam and AdamW as `torch.optim` does them, with amsgrad, maximize and either kind of decay. Letters:
x = (maximize ? -g : g) + e the gradient that enters the moments, e = decay * w where decay is
coupled (Adam's L2) and 0 where it is not (AdamW: `apart`); b1, b2 the betas; t the step's number
from 1; c1 = 1 - b1^t, c2 = 1 - b2^t.

    M(x) = b1 m + (1 - b1) x
    V(x) = b2 v + (1 - b2) x^2, with amsgrad max(v_max, that)
    A(x) = sqrt(V(x) / c2) + eps
    d    = lr * (M(x) / (c1 A(x)) + apart * w)

Slope, tangent and null update follow from `displacement` by divided differences (`_divided.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from inrun.optim._divided import ElementwiseRule
from inrun.optim._rule import History, Live, Memory, Momentum, entering, numbers_of, steps_seen


class AdamState(NamedTuple):
    """Moments before the step, and how many steps they have seen.

    `v_max`: amsgrad's. `product`: NAdam's P up to the step before, a number in a tensor.
    """

    m: Tensor
    v: Tensor
    v_max: Tensor | None
    steps: int
    product: Tensor | None = None


class AdamSetting(NamedTuple):
    """The parameter group's numbers. `decay` is added to the gradient, `apart` shrinks weights."""

    lr: float
    b1: float
    b2: float
    eps: float
    decay: float
    apart: float
    maximize: bool
    momentum_decay: float = 0.0


Read = Callable[[Live, Tensor], tuple[AdamState, AdamSetting]]
"""`Rule.read` of one group's parameters."""


class MomentsRule(ElementwiseRule[AdamState, AdamSetting]):
    """What all rules have in common that keep a mean gradient m beside what divides it."""

    second: ClassVar[str] = "exp_avg_sq"
    mean_square = "v"

    def __init__(self, *, decoupled: bool = False):
        self._decoupled, self.momentum = decoupled, MeanGradient(self)

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[AdamState, AdamSetting]:
        return self.reader(group)(state, weight)

    def reader(self, group: Live) -> Read:
        """See `Rule.reader`: the group's numbers are read once."""
        lr, eps, decay = numbers_of(group, "lr", "eps", "weight_decay")
        b1, b2 = (float(beta) for beta in group["betas"])
        apart, largest = group.get("decoupled_weight_decay", self._decoupled), group.get("amsgrad")
        setting = AdamSetting(
            lr, b1, b2, eps, 0.0 if apart else decay, decay if apart else 0.0, group["maximize"],
            float(group.get("momentum_decay", 0.0)),
        )  # fmt: skip

        def read(state: Live, weight: Tensor) -> tuple[AdamState, AdamSetting]:
            if "exp_avg" not in state or self.second not in state or largest:
                # one number, however large the weight
                zero = weight.new_zeros(()).expand_as(weight)
                state = {"exp_avg": zero, self.second: zero, "max_exp_avg_sq": zero, **state}
            m, v = state["exp_avg"], state[self.second]
            v_max = state["max_exp_avg_sq"] if largest else None
            return AdamState(m, v, v_max, steps_seen(state), state.get("mu_product")), setting

        return read

    def _first(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        return h.b1 * s.m + (1 - h.b1) * x

    def _second(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        return h.b2 * s.v + (1 - h.b2) * (x * x)

    def _update(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        """The displacement but for the learning rate and decay that is apart."""
        second = self._second(x, s, h)
        if s.v_max is not None:
            second = torch.maximum(second, s.v_max)
        c1, c2 = corrections(s.steps + 1, h)
        return self._first(x, s, h) * (1 / c1) / (torch.sqrt(second * (1 / c2)) + h.eps)

    def displacement(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        moved = h.lr * self._update(entering(g, w, h), s, h)
        return moved + h.lr * h.apart * w if h.apart else moved

    def history(self, w: Tensor, s: AdamState, h: AdamSetting) -> History:
        """See `Rule.history`; decay that is apart adds what it says."""
        if h.decay or not h.apart:
            return super().history(w, s, h)
        return History(self.without_gradient(w, s, self.without_decay(h)), h.lr * h.apart * w)

    def advance(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> AdamState:
        x = entering(g, w, h)
        second = self._second(x, s, h)
        largest = None if s.v_max is None else torch.maximum(s.v_max, second)
        return AdamState(self._first(x, s, h), second, largest, s.steps + 1, s.product)

    def window(self, s: AdamState, h: AdamSetting) -> float:
        """See `Rule.window`; a maximum forgets nothing."""
        return super().window(s, h) if s.v_max is None else math.inf


class MeanGradient(Momentum):
    """Of rules whose d(0) is proportional to the mean gradient m: its slope is d(0) with m = 1."""

    def __init__(self, rule: MomentsRule):
        self._rule = rule

    def memory(self, w: Tensor, s: AdamState, h: AdamSetting) -> Memory:
        enters, unit = (-1.0 if h.maximize else 1.0) * (1 - h.b1), s._replace(m=torch.ones_like(w))
        slope = self._rule.displacement(torch.zeros_like(w), w, unit, self._rule.without_decay(h))
        # where v is 0, so was every gradient; where nothing is left of it d(0) counts 0
        acts = (s.v > 0) & torch.isfinite(slope)
        return Memory(torch.where(acts, slope, 0.0), h.b1, enters)

    def remembered(self, s: AdamState) -> Tensor | None:
        return s.m if s.steps else None


def corrections(step: int, h: AdamSetting) -> tuple[float, float]:
    """c1 and c2."""
    return 1 - h.b1**step, 1 - h.b2**step
