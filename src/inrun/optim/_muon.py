"""Muon as `torch.optim` does it, and as its author publishes it.

Momentum, orthogonalized by Newton-Schulz steps:

    B' = momentum * B + (1 - momentum) * g
    x  = nesterov ? (1 - momentum) * g + momentum * B' : B'
    X  = x / max(|x|, eps), then a few times  X <- a X + (b X X^T + c (X X^T)^2) X
    d  = lr * adjust * X + lr * decay * w

The optimizer iterates in bfloat16, and so does `displacement`; `smooth_displacement` keeps the
precision that it is given, so that the Jacobian is not made of rounding. With an empty momentum
buffer d depends on the direction of g alone.

The author's package has four classes (`Muon`, `SingleDeviceMuon`, and both `WithAuxAdam`, whose
groups say `use_muon`). Their step is torch's with its default arguments, but that x is divided by
|x| + 1e-7, products are rounded in another order, and that a kernel of four axes counts as a matrix
and a stack of three as several.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._adam import AdamRule
from inrun.optim._jacobian import MatrixRule
from inrun.optim._moments import Read
from inrun.optim._rule import Live, Rule, numbers_of


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

    def _update(self, x: Tensor, h: MuonSetting) -> Tensor:
        """The orthogonalized matrix in the precision of x."""
        return orthogonalized(x, h)

    def _moved(self, update: Tensor, w: Tensor, h: MuonSetting) -> Tensor:
        return h.lr * h.gain * update + h.lr * h.decay * w

    def displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        update = self._update(self._entering(g, s, h).bfloat16(), h)
        return self._moved(update.to(w.dtype), w, h)

    def smooth_displacement(self, g: Tensor, w: Tensor, s: MuonState, h: MuonSetting) -> Tensor:
        return self._moved(self._update(self._entering(g, s, h), h), w, h)

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


COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class PublishedMuonRule(MuonRule):
    """The author's `Muon` and `SingleDeviceMuon`."""

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[MuonState, MuonSetting]:
        lr, momentum, decay = numbers_of(group, "lr", "momentum", "weight_decay")
        setting = MuonSetting(
            lr, _gain(None, weight.shape[-2:]), momentum, decay, group.get("nesterov", True),
            COEFFICIENTS, 1e-7, int(group.get("ns_steps", 5)),
        )  # fmt: skip
        return MuonState(state.get("momentum_buffer", torch.zeros_like(weight))), setting

    def _moved(self, update: Tensor, w: Tensor, h: MuonSetting) -> Tensor:
        return h.lr * update + h.lr * h.decay * w

    def _update(self, x: Tensor, h: MuonSetting) -> Tensor:
        """Adjusted, and rounded in the author's order."""
        a, b, c = h.coefficients
        kernel = x.ndim == 4
        flat = x.flatten(1) if kernel else x
        tall = flat.shape[-2] > flat.shape[-1]
        flat = flat.mT if tall else flat
        flat = flat / (flat.norm(dim=(-2, -1), keepdim=True) + h.eps)
        for _ in range(h.iterations):
            gram = flat @ flat.mT
            flat = a * flat + (b * gram + c * gram @ gram) @ flat
        update: Tensor = (flat.mT if tall else flat).reshape(x.shape) * h.gain
        return update


class AuxAdamRule(AdamRule):
    """AdamW of the groups that Muon leaves to it."""

    def reader(self, group: Live) -> Read:
        return super().reader({**group, "maximize": False, "amsgrad": False})


class MuonWithAuxAdamRule(PublishedMuonRule):
    """The author's `MuonWithAuxAdam` and `SingleDeviceMuonWithAuxAdam`."""

    _aux = AuxAdamRule(decoupled=True)

    def of(self, group: Live) -> Rule[Any, Any]:
        return self if group["use_muon"] else self._aux
