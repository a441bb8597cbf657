"""Optimizers with Adam's moments, put together otherwise.

Adamax, NAdam and RAdam of `torch.optim`, with x, M, V, c1, c2 as in `_moments.py`:

    Adamax  d = lr / c1 * M / max(b2 u, |x| + eps)
    NAdam   d = lr * ((1 - mu) / (1 - P) * x + mu' / (1 - P mu') * M) / (sqrt(V / c2) + eps)
    RAdam   d = lr / c1 * M * (rho > 5 ? rectification * sqrt(c2) / (sqrt(V) + eps) : 1)

mu and mu' are NAdam's momentum factors of this step and the next, P their product up to this one;
rho is the length of RAdam's second moment in steps. Where decay is not coupled, lr * decay * w is
added to d.

Schedule-free AdamW of `schedulefree` trains the weights y between the fast sequence z and its
average. With c = weight_t / (sum of weights), u = g / (sqrt(V / c2) + eps) + decay * y:

    d = c * (y - z) + lr * (1 - b1 (1 - c)) * u

What is scored is y, the weights that the optimizer trains; `optimizer.eval()` moves the model to
another point, the average.

Moments in 8 bits or fewer (`torchao`, `bitsandbytes`): both packages take the moments out of their
few bits, make Adam's step with the full numbers, and only then round the moments again, block by
block. So the displacement for a given state is Adam's own, for every gradient; what cannot be had
is the state after the step, nor what is told from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._adam import AdamRule
from inrun.optim._divided import ElementwiseRule
from inrun.optim._moments import AdamSetting, AdamState, MomentsRule, Read
from inrun.optim._rule import Live, PostStep, numbers_of

BLOCK = 256  # elements of a bitsandbytes moment that share one scale


class AdamaxRule(MomentsRule):
    """`torch.optim.Adamax`; v is the largest size."""

    second = "exp_inf"

    def _second(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        return torch.maximum(abs(x) + h.eps, h.b2 * s.v)

    def _update(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        return self._first(x, s, h) / (1 - h.b1 ** (s.steps + 1)) / self._second(x, s, h)

    def guarded(self, s: AdamState, h: AdamSetting, square: float) -> AdamState:
        """See `Rule.guarded`: v is a size, not a square."""
        return s._replace(v=s.v.clamp(min=math.sqrt(square)))


class NAdamRule(MomentsRule):
    """`torch.optim.NAdam`."""

    def _factors(self, s: AdamState, h: AdamSetting) -> tuple[float, float, Tensor]:
        """Mu, mu' and P, which is rounded as the optimizer does."""
        now, following = (
            h.b1 * (1.0 - 0.5 * 0.96 ** ((s.steps + k) * h.momentum_decay)) for k in (1, 2)
        )
        return now, following, (torch.ones(()) if s.product is None else s.product) * now

    def _update(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        now, following, product = self._factors(s, h)
        whole = float(product)
        root = torch.sqrt(self._second(x, s, h) / (1 - h.b2 ** (s.steps + 1))) + h.eps
        ahead = following / (1 - whole * following) * self._first(x, s, h)
        return ((1 - now) / (1 - whole) * x + ahead) / root

    def advance(self, g: Tensor, w: Tensor, s: AdamState, h: AdamSetting) -> AdamState:
        return super().advance(g, w, s, h)._replace(product=self._factors(s, h)[2])


class RAdamRule(MomentsRule):
    """`torch.optim.RAdam`: momentum alone while the second moment is young."""

    def _rectification(self, s: AdamState, h: AdamSetting) -> float | None:
        """What the second moment's step is multiplied by; None while momentum alone acts."""
        step, most = s.steps + 1, 2 / (1 - h.b2) - 1
        rho = most - 2 * step * h.b2**step / (1 - h.b2**step)
        if rho <= 5:
            return None
        return math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))

    def _update(self, x: Tensor, s: AdamState, h: AdamSetting) -> Tensor:
        step, rectification = s.steps + 1, self._rectification(s, h)
        first = self._first(x, s, h) / (1 - h.b1**step)
        if rectification is None:
            return first
        root = torch.sqrt(self._second(x, s, h)) + h.eps
        return first / root * (rectification * math.sqrt(1 - h.b2**step))

    def age(self, s: AdamState, h: AdamSetting) -> int | None:
        """See `Rule.age`; None while momentum alone acts."""
        return None if self._rectification(s, h) is None else super().age(s, h)


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

    mean_square = "v"

    def read(
        self, group: Live, state: Live, weight: Tensor
    ) -> tuple[ScheduleFreeState, ScheduleFreeSetting]:
        k, warmup = int(group["k"]), group["warmup_steps"]
        lr, eps, decay = numbers_of(group, "lr", "eps", "weight_decay")
        b1, b2 = (float(beta) for beta in group["betas"])
        lr *= (k + 1) / warmup if k < warmup else 1.0
        part = (k + 1) ** group["r"] * max(lr, group["lr_max"]) ** group["weight_lr_power"]
        total = group["weight_sum"] + part
        setting = ScheduleFreeSetting(lr, b1, b2, eps, decay, part / total if total else 0.0)
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
        moved = h.lr * (1 - h.b1 * (1 - h.share)) * self._update(g, w, s, h)
        return moved + h.share * (w - s.z)

    def advance(
        self, g: Tensor, w: Tensor, s: ScheduleFreeState, h: ScheduleFreeSetting
    ) -> ScheduleFreeState:
        z = s.z - h.lr * self._update(g, w, s, h)
        return ScheduleFreeState(z, self._second(g, s, h), s.steps + 1)


class RoundedAdamRule(AdamRule):
    """Adam's step from moments that are rounded after it, and do not remember linearly."""

    rounds = True
    post_step: ClassVar[PostStep | None] = None

    def __init__(self, *, decoupled: bool):
        super().__init__(decoupled=decoupled)
        self.momentum = None


class TorchAORule(RoundedAdamRule):
    """`torchao.optim`: Adam and AdamW with 8-bit, 4-bit or float8 moments."""

    def reader(self, group: Live) -> Read:
        read = super().reader({**group, "maximize": False})

        def unpacked(state: Live, weight: Tensor) -> tuple[AdamState, AdamSetting]:
            full = {n: _unpacked(t) if isinstance(t, Tensor) else t for n, t in state.items()}
            return read(full, weight)

        return unpacked


class BitsAndBytesRule(RoundedAdamRule):
    """`bitsandbytes.optim`: Adam and AdamW, paged or not; decay is decoupled in all of them."""

    def reader(self, group: Live) -> Read:
        plain = {**group, "betas": group["betas"][:2], "maximize": False, "amsgrad": False}
        read = super().reader(plain)

        def unpacked(state: Live, weight: Tensor) -> tuple[AdamState, AdamSetting]:
            if not state:
                return read({}, weight)
            first, second = _moment(state, 1), _moment(state, 2)
            full = {"exp_avg": first, "exp_avg_sq": second, "step": state["step"]}
            return read(full, weight)

        return unpacked


def _unpacked(value: Tensor) -> Tensor:
    """A moment in full precision: torchao's classes say so by name."""
    if type(value).__name__.startswith("OptimState"):
        full: Tensor = value.dequantize()
        return full.float()
    return value.float()


def _moment(state: Mapping[str, Any], number: int) -> Tensor:
    """The first or second moment: codes, the numbers they stand for, and a scale per block."""
    codes: Tensor = state[f"state{number}"]
    if codes.dtype != torch.uint8:
        return codes.float()
    units: Tensor = state[f"qmap{number}"][codes.reshape(-1).long()]
    scales: Tensor = state[f"absmax{number}"].repeat_interleave(BLOCK)[: units.numel()]
    return (units * scales).reshape(codes.shape)


def quantized_rule(optimizer: torch.optim.Optimizer) -> RoundedAdamRule | None:
    """The rule of one of these packages' Adams; None for any other optimizer."""
    package = type(optimizer).__module__.split(".")[0]
    if package == "torchao" and hasattr(optimizer, "is_adamw"):
        return TorchAORule(decoupled=bool(optimizer.is_adamw))
    if package != "bitsandbytes" or getattr(optimizer, "optimizer_name", "") != "adam":
        return None
    args, manager = optimizer.args, optimizer.mng  # type: ignore[attr-defined]
    if getattr(args, "max_unorm", 0.0) or getattr(args, "skip_zeros", False):
        raise NotSupportedError(
            f"{type(optimizer).__name__} with max_unorm or skip_zeros changes the update in a way "
            "that has no rule here. Turn it off, or write the rule: inrun.optim.register."
        )
    if manager.index2config or manager.pid2config:
        raise NotSupportedError(
            f"{type(optimizer).__name__} has settings for single parameters (GlobalOptimManager), "
            "which are not read here. Put such parameters into a group of their own."
        )
    return BitsAndBytesRule(decoupled=True)
