"""Muon as `torch.optim.Muon` does it: momentum, orthogonalized by Newton-Schulz steps.

    B' = momentum * B + (1 - momentum) * g
    x  = nesterov ? (1 - momentum) * g + momentum * B' : B'
    X  = x / max(|x|, eps), then a few times  X <- a X + (b X X^T + c (X X^T)^2) X
    d  = lr * adjust * X + lr * decay * w

The optimizer iterates in bfloat16, and so does `displacement`; `smooth_displacement` keeps the
precision that it is given, so that the Jacobian is not made of rounding. With an empty momentum
buffer d depends on the direction of g alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._jacobian import MatrixRule


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
    """`torch.optim.Muon`."""

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[MuonState, MuonSetting]:
        """See `Rule.read`."""
        setting = MuonSetting(
            lr=float(group["lr"]),
            gain=_gain(group["adjust_lr_fn"], weight.shape),
            momentum=float(group["momentum"]),
            decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            coefficients=group["ns_coefficients"],
            eps=float(group["eps"]),
            iterations=int(group["ns_steps"]),
        )
        buffer = state["momentum_buffer"] if state else torch.zeros_like(weight)
        return MuonState(buffer), setting

    def _entering(self, g: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        """The matrix that is orthogonalized."""
        buffer = s.buffer.lerp(g, 1 - h.momentum)
        return g.lerp(buffer, h.momentum) if h.nesterov else buffer

    def _moved(self, update: Tensor, w: Tensor, h: MuonSetting) -> Tensor:
        return h.lr * h.gain * update + h.lr * h.decay * w

    def displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        """See `Rule.displacement`."""
        x = self._entering(g, s, h).bfloat16()
        return self._moved(orthogonalized(x, h).to(w.dtype), w, h)

    def smooth_displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        """See `Rule.smooth_displacement`."""
        return self._moved(orthogonalized(self._entering(g, s, h), h), w, h)

    def advance(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> MuonState:
        """See `Rule.advance`."""
        return MuonState(s.buffer.lerp(g, 1 - h.momentum))

    def effort(self, shape: torch.Size) -> float:
        """See `Rule.effort`: fifteen products of matrices, as measured on those of width 64."""
        return 8.0

    def steps_taken(self, s: MuonState) -> int:
        """See `Rule.steps_taken`: singular values are taken to 1, as signs are."""
        return 0


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
