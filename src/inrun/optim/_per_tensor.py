"""Rules that scale the update of each tensor by norms: Adafactor and LAMB.

Adafactor has a factored second moment and clips updates. Torch's, with x = (maximize ? -g : g), t
the step's number from 1, k = t^beta2_decay:

    R = (1-k) r + k mean of x^2 over columns,  C = (1-k) c + k mean of x^2 over rows
    V = R C / max(mean R, eps1)      (a vector has V = (1-k) v + k x^2 instead)
    u = x / sqrt(max(V, eps1^2))
    d = a * u / max(1, rms(u) / clip) + lr * decay * w,  a = max(eps2, rms(w)) * min(lr, 1/sqrt(t))

rms(w) is that of the weights before decay. In the first step k = 1 and d depends on the direction
of g alone. That of `transformers` has x^2 + eps1 in place of x^2 and no other eps1,

    a = (scale_parameter ? max(eps2, rms(w)) : 1) * rate,      d = [mean of updates] + a * decay * w
    rate = relative_step ? min(warmup_init ? 1e-6 t : 1e-2, 1/sqrt(t)) : lr

and with `beta1` moves by a mean of updates, b1 m + (1 - b1) a u / max(1, rms(u) / clip).

LAMB as `pytorch_optimizer` does it (version 3 of the paper) scales Adam's update per tensor. With
M = b1 m + b3 x, V = b2 v + (1 - b2) x^2, w0 = (1 - apart) w the decayed weights (where decay is
decoupled, else w0 = w):

    u = M / (sqrt(V) + eps)  [+ decay * w where decay is coupled]
    d = lr / (1 - b1^t) * trust * u + w - w0
    trust = min(|w0|, 10) / (|u| + eps), or 1 where either norm is 0
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inrun.optim._jacobian import MatrixRule
from inrun.optim._rule import Live, numbers_of, steps_seen


class AdafactorState(NamedTuple):
    """Row and column moments of a matrix, or the whole second moment of a vector.

    `mean`: of the updates, where transformers' keeps one.
    """

    rows: Tensor | None
    columns: Tensor | None
    variance: Tensor | None
    steps: int
    mean: Tensor | None = None


class AdafactorSetting(NamedTuple):
    lr: float
    beta2_decay: float
    eps1: float
    eps2: float
    clip: float
    decay: float
    maximize: bool


class AdafactorRule(MatrixRule[AdafactorState, AdafactorSetting]):
    """`torch.optim.Adafactor`."""

    def read(
        self, group: Live, state: Live, weight: Tensor
    ) -> tuple[AdafactorState, AdafactorSetting]:
        eps1, eps2 = group["eps"]
        lr, power, clip, decay = numbers_of(group, "lr", "beta2_decay", "d", "weight_decay")
        eps1 = torch.finfo(weight.dtype).eps if eps1 is None else float(eps1)
        setting = AdafactorSetting(lr, power, eps1, float(eps2), clip, decay, group["maximize"])
        if weight.dim() < 2:
            variance = state.get("variance", torch.zeros_like(weight))
            return AdafactorState(None, None, variance, steps_seen(state)), setting
        rows = state.get("row_var", torch.zeros_like(weight[..., :1]))
        columns = state.get("col_var", torch.zeros_like(weight[..., :1, :]))
        return AdafactorState(rows, columns, None, steps_seen(state)), setting

    def advance(
        self, g: Tensor, w: Tensor, s: AdafactorState, h: AdafactorSetting
    ) -> AdafactorState:
        return _seen(s, g * g, h.beta2_decay, keepdim=True)

    def displacement(self, g: Tensor, w: Tensor, s: AdafactorState, h: AdafactorSetting) -> Tensor:
        after = self.advance(g, w, s, h)
        if after.rows is None or after.columns is None:
            assert after.variance is not None
            variance = after.variance
        else:
            mean = after.rows.mean(-2, keepdim=True).clamp(min=h.eps1)
            variance = after.rows @ after.columns / mean
        update = (-g if h.maximize else g) * variance.clamp(min=h.eps1**2).rsqrt()
        rate = min(h.lr, float(after.steps) ** -0.5)
        size = (w.norm() / w.numel() ** 0.5).clamp(min=h.eps2)
        clip = update.norm() / (w.numel() ** 0.5 * h.clip)
        clip = torch.where(clip > 1, clip, 1.0)  # also of what is no number, as the optimizer does
        moved: Tensor = rate * size * update / clip
        return moved + h.lr * h.decay * w

    def age(self, s: AdafactorState, h: AdafactorSetting) -> int:
        return _age(s, h.beta2_decay)


LEAST = 1e-24  # the root of less has no slope that single precision could hold


class TransformersAdafactorSetting(NamedTuple):
    """The parameter group's numbers; `lr` without the weight's size."""

    lr: float
    beta2_decay: float
    eps1: float
    eps2: float
    clip: float
    decay: float
    b1: float | None
    sized: bool
    maximize: bool = False


class TransformersAdafactorRule(MatrixRule[AdafactorState, TransformersAdafactorSetting]):
    """`transformers.Adafactor`, which computes in single precision at least."""

    def read(
        self, group: Live, state: Live, weight: Tensor
    ) -> tuple[AdafactorState, TransformersAdafactorSetting]:
        eps1, eps2 = (float(eps) for eps in group["eps"])
        power, clip, decay = numbers_of(group, "decay_rate", "clip_threshold", "weight_decay")
        steps = steps_seen(state)
        lr = group["lr"]
        if group["relative_step"]:
            lr = 1e-6 * (steps + 1) if group["warmup_init"] else 1e-2
            lr = min(lr, (steps + 1) ** -0.5)
        setting = TransformersAdafactorSetting(
            float(lr), power, eps1, eps2, clip, decay, group["beta1"], group["scale_parameter"]
        )
        nothing = torch.zeros_like(weight, dtype=_full(weight))
        mean = None if setting.b1 is None else state.get("exp_avg", nothing)
        if weight.dim() < 2:
            return AdafactorState(
                None, None, state.get("exp_avg_sq", nothing), steps, mean
            ), setting
        rows = state.get("exp_avg_sq_row", nothing[..., 0])
        columns = state.get("exp_avg_sq_col", nothing[..., 0, :])
        return AdafactorState(rows, columns, None, steps, mean), setting

    def _update(
        self, g: Tensor, w: Tensor, s: AdafactorState, h: TransformersAdafactorSetting
    ) -> tuple[Tensor, Tensor | float]:
        """The clipped update times the learning rate, and that rate."""
        after = _seen(s, g * g + h.eps1, h.beta2_decay, keepdim=False)
        if after.rows is None or after.columns is None:
            assert after.variance is not None
            update = g * _inverse_root(after.variance)
        else:
            of_row = _inverse_root(after.rows / after.rows.mean(-1, keepdim=True)).unsqueeze(-1)
            update = g * (of_row * _inverse_root(after.columns).unsqueeze(-2))
        size = w.norm() / w.numel() ** 0.5
        rate = h.lr * size.clamp(min=h.eps2) if h.sized else h.lr
        clip = (update.norm() / (w.numel() ** 0.5 * h.clip)).clamp(min=1.0)
        return rate * update / clip, rate

    def advance(
        self, g: Tensor, w: Tensor, s: AdafactorState, h: TransformersAdafactorSetting
    ) -> AdafactorState:
        after = _seen(s, g * g + h.eps1, h.beta2_decay, keepdim=False)
        if h.b1 is None or s.mean is None:
            return after
        return after._replace(mean=h.b1 * s.mean + (1 - h.b1) * self._update(g, w, s, h)[0])

    def displacement(
        self, g: Tensor, w: Tensor, s: AdafactorState, h: TransformersAdafactorSetting
    ) -> Tensor:
        g, w = g.to(_full(g)), w.to(_full(w))
        update, rate = self._update(g, w, s, h)
        if h.b1 is not None and s.mean is not None:
            update = h.b1 * s.mean + (1 - h.b1) * update
        return update + rate * h.decay * w

    def age(self, s: AdafactorState, h: TransformersAdafactorSetting) -> int:
        return _age(s, h.beta2_decay)


def _seen(s: AdafactorState, square: Tensor, power: float, *, keepdim: bool) -> AdafactorState:
    """The moments with these squares in them."""
    k = (s.steps + 1) ** power
    if s.rows is None or s.columns is None:
        assert s.variance is not None
        return s._replace(variance=s.variance.lerp(square, k), steps=s.steps + 1)
    rows = s.rows.lerp(square.mean(-1, keepdim=keepdim), k)
    columns = s.columns.lerp(square.mean(-2, keepdim=keepdim), k)
    return s._replace(rows=rows, columns=columns, steps=s.steps + 1)


def _age(s: AdafactorState, power: float) -> int:
    """The window grows with the steps, t^-power."""
    return int(min(s.steps, float(s.steps) ** -power) + 0.05) if s.steps else 0


def _full(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _inverse_root(t: Tensor) -> Tensor:
    """The inverse root, without a slope where next to nothing touched an element."""
    touched = t > LEAST
    root = torch.where(touched, t, 1.0).rsqrt()
    return torch.where(touched, root, t.detach().rsqrt())


class LambState(NamedTuple):
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
