"""Adafactor as `torch.optim` does it: a factored second moment, clipped updates, relative steps.

With x = (maximize ? -g : g), t the step's number from 1, k = t^beta2_decay:

    R = (1-k) r + k mean of x^2 over columns,  C = (1-k) c + k mean of x^2 over rows
    V = R C / max(mean R, eps1)      (a vector has V = (1-k) v + k x^2 instead)
    u = x / sqrt(max(V, eps1^2))
    d = a * u / max(1, rms(u) / clip) + lr * decay * w,  a = max(eps2, rms(w)) * min(lr, 1/sqrt(t))

rms(w) is that of the weights before decay. In the first step k = 1 and d depends on the direction
of g alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._jacobian import MatrixRule
from inrun.optim._rule import steps_seen


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
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[AdafactorState, AdafactorSetting]:
        """See `Rule.read`."""
        eps1, eps2 = group["eps"]
        setting = AdafactorSetting(
            lr=float(group["lr"]),
            beta2_decay=float(group["beta2_decay"]),
            eps1=torch.finfo(weight.dtype).eps if eps1 is None else float(eps1),
            eps2=float(eps2),
            clip=float(group["d"]),
            decay=float(group["weight_decay"]),
            maximize=group["maximize"],
        )
        if weight.dim() < 2:
            variance = state.get("variance", torch.zeros_like(weight))
            return AdafactorState(None, None, variance, steps_seen(state)), setting
        rows = state.get("row_var", torch.zeros_like(weight[..., :1]))
        columns = state.get("col_var", torch.zeros_like(weight[..., :1, :]))
        return AdafactorState(rows, columns, None, steps_seen(state)), setting

    def advance(
        self, g: Tensor, w: Tensor, s: AdafactorState, h: AdafactorSetting
    ) -> AdafactorState:
        """See `Rule.advance`."""
        k, square = (s.steps + 1) ** h.beta2_decay, g * g
        if s.rows is None or s.columns is None:
            assert s.variance is not None
            return AdafactorState(None, None, s.variance.lerp(square, k), s.steps + 1)
        rows = s.rows.lerp(square.mean(-1, keepdim=True), k)
        return AdafactorState(
            rows, s.columns.lerp(square.mean(-2, keepdim=True), k), None, s.steps + 1
        )

    def displacement(self, g: Tensor, w: Tensor, s: AdafactorState, h: AdafactorSetting) -> Tensor:
        """See `Rule.displacement`."""
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

    def steps_taken(self, s: AdafactorState) -> int:
        """See `Rule.steps_taken`."""
        return s.steps

    def age(self, s: AdafactorState, h: AdafactorSetting) -> int:
        """See `Rule.age`: the window grows with the steps, t^-beta2_decay."""
        return int(min(s.steps, float(s.steps) ** -h.beta2_decay) + 0.05) if s.steps else 0
