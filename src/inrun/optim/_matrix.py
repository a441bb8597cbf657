"""Muon, LAMB and Adafactor: rules that mix a parameter's elements.

Muon as `torch.optim.Muon` does it: momentum, orthogonalized by Newton-Schulz steps.

    B' = momentum * B + (1 - momentum) * g
    x  = nesterov ? (1 - momentum) * g + momentum * B' : B'
    X  = x / max(|x|, eps), then a few times  X <- a X + (b X X^T + c (X X^T)^2) X
    d  = lr * adjust * X + lr * decay * w

The optimizer iterates in bfloat16, and so does `displacement`; `smooth_displacement` keeps the
precision that it is given, so that the Jacobian is not made of rounding. With an empty momentum
buffer d depends on the direction of g alone.

LAMB as `pytorch_optimizer` does it (version 3 of the paper): Adam's update, scaled per tensor. With
x = (maximize ? -g : g), M = b1 m + b3 x, V = b2 v + (1 - b2) x^2, w0 = (1 - apart) w the decayed
weights (where decay is decoupled, else w0 = w):

    u = M / (sqrt(V) + eps)  [+ decay * w where decay is coupled]
    d = lr / (1 - b1^t) * trust * u + w - w0
    trust = min(|w0|, 10) / (|u| + eps), or 1 where either norm is 0

Adafactor as `torch.optim` does it: a factored second moment, clipped updates, relative steps. With
t the step's number from 1, k = t^beta2_decay:

    R = (1-k) r + k mean of x^2 over columns,  C = (1-k) c + k mean of x^2 over rows
    V = R C / max(mean R, eps1)      (a vector has V = (1-k) v + k x^2 instead)
    u = x / sqrt(max(V, eps1^2))
    d = a * u / max(1, rms(u) / clip) + lr * decay * w,  a = max(eps2, rms(w)) * min(lr, 1/sqrt(t))

rms(w) is that of the weights before decay. In the first step k = 1 and d depends on the direction
of g alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.optim._jacobian import MatrixRule
from inrun.optim._rule import Live, numbers_of, steps_seen


class MuonState(NamedTuple):
    """The momentum buffer, zeros before the first step."""

    buffer: Tensor


class MuonSetting(NamedTuple):
    """The parameter group's numbers; `gain` multiplies the learning rate of the matrix's part."""

    lr: float
    gain: float
    momentum: float
    decay: float
    nesterov: bool
    coefficients: tuple[float, float, float]
    eps: float
    iterations: int
    maximize: bool = False


class MuonRule(MatrixRule[MuonState, MuonSetting]):
    """`torch.optim.Muon`; it takes singular values to 1, as others take elements to signs."""

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[MuonState, MuonSetting]:
        lr, momentum, decay, eps = numbers_of(group, "lr", "momentum", "weight_decay", "eps")
        setting = MuonSetting(
            lr, _gain(group["adjust_lr_fn"], weight.shape), momentum, decay, group["nesterov"],
            group["ns_coefficients"], eps, int(group["ns_steps"]),
        )  # fmt: skip
        buffer = state["momentum_buffer"] if state else torch.zeros_like(weight)
        return MuonState(buffer), setting

    def _entering(self, g: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        """The matrix that is orthogonalized."""
        buffer = s.buffer.lerp(g, 1 - h.momentum)
        return g.lerp(buffer, h.momentum) if h.nesterov else buffer

    def _moved(self, update: Tensor, w: Tensor, h: MuonSetting) -> Tensor:
        return h.lr * h.gain * update + h.lr * h.decay * w

    def displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        x = self._entering(g, s, h).bfloat16()
        return self._moved(orthogonalized(x, h).to(w.dtype), w, h)

    def smooth_displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        return self._moved(orthogonalized(self._entering(g, s, h), h), w, h)

    def advance(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> MuonState:
        return MuonState(s.buffer.lerp(g, 1 - h.momentum))

    def effort(self, shape: torch.Size) -> float:
        """See `Rule.effort`: fifteen products of matrices, as measured on those of width 64."""
        return 8.0


def orthogonalized(x: Tensor, h: MuonSetting) -> Tensor:
    """The Newton-Schulz iteration of Muon, in the precision of x (M, N)."""
    a, b, c = h.coefficients
    tall = x.shape[0] > x.shape[1]
    flat = x.T if tall else x
    norm = flat.norm().clamp(min=h.eps)
    flat = flat / torch.where(norm == 0, 1.0, norm)  # of nothing, without eps: nothing
    for _ in range(h.iterations):
        gram = flat @ flat.T
        flat = torch.addmm(flat, torch.addmm(gram, gram, gram, beta=b, alpha=c), flat, beta=a)
    return flat.T if tall else flat


def _gain(adjust: str | None, shape: torch.Size) -> float:
    """What the learning rate is multiplied by for a matrix of this shape."""
    rows, columns = shape[:2]
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


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


class AdafactorState(NamedTuple):
    """Row and column moments of a matrix, or the whole second moment of a vector."""

    rows: Tensor | None
    columns: Tensor | None
    variance: Tensor | None
    steps: int


class AdafactorSetting(NamedTuple):
    """The parameter group's numbers."""

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
        k, square = (s.steps + 1) ** h.beta2_decay, g * g
        if s.rows is None or s.columns is None:
            assert s.variance is not None
            return AdafactorState(None, None, s.variance.lerp(square, k), s.steps + 1)
        rows = s.rows.lerp(square.mean(-1, keepdim=True), k)
        return AdafactorState(
            rows, s.columns.lerp(square.mean(-2, keepdim=True), k), None, s.steps + 1
        )

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
        """See `Rule.age`: the window grows with the steps, t^-beta2_decay."""
        return int(min(s.steps, float(s.steps) ** -h.beta2_decay) + 0.05) if s.steps else 0
