"""Shares of a head whose logits are never there at once: its gradients are computed again by tiles.

A fused loss projects the hidden states h_t to logits z_t = W h_t + c tile by tile, folds each tile
into the loss's numbers, and computes it again for the gradient. The shares are those of a linear
map,

    share_b of W = sum_t g_bt h_bt^T,    share_b of c = sum_t g_bt,    g_t = d loss / d z_t,

where g_t, as long as the vocabulary, is made again for each question, a tile at a time:

    y = cap(s z) / temperature,   p = softmax(y),
    d loss / d y_tv = a_t p_tv + b_t 1[v = target_t] + c_t p_tv log p_tv + d_t w_v

with four numbers per position. Cross-entropy, log-probabilities, entropies, label smoothing, a
penalty on the partition function and class weights w are all of this form.

Letters: B samples, T positions of a sample, N features, V the vocabulary, n positions of a tile,
v its columns, K directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._factor import Factor
from inrun.factors._trial import LowRank

POSITIONS = 4096  # of a tile at most
COLUMNS = 256  # of a tile at least: thinner products are slow


class Coefficients(NamedTuple):
    """a, b, c and d of a loss's gradient in y, (B, T) each; None where they are 0."""

    softmax: Tensor
    target: Tensor
    entropy: Tensor | None = None
    weights: Tensor | None = None

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        return tuple(t for t in self if t is not None)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Coefficients:
        """Each changed."""
        return Coefficients(*(None if t is None else change(t) for t in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Head:
    """A linear map to logits, and what becomes of them before the softmax.

    `weight` (V, N), `bias` (V,), `class_weights` w (V,), None: all are 1. `softcap` None: no cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    class_weights: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Its tensors."""
        return tuple(t for t in (self.weight, self.bias, self.class_weights) if t is not None)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Head:
        """The same with each of its tensors changed."""
        return replace(
            self,
            weight=change(self.weight),
            bias=None if self.bias is None else change(self.bias),
            class_weights=None if self.class_weights is None else change(self.class_weights),
        )

    def tiles(self, hidden_nN: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """(columns, z of these positions and columns), one tile of logits after the other."""
        V, rows = len(self.weight), hidden_nN.to(dtype)
        device = hidden_nN.device
        limit = cost.CACHED_BYTES if device.type == "cpu" else cost.DEVICE_BYTES
        width = max(COLUMNS, limit // (dtype.itemsize * max(1, len(rows))))
        for start in range(0, V, width):
            columns = slice(start, min(start + width, V))
            z_nv = rows @ self.weight[columns].to(device, dtype).T
            if self.bias is not None:
                z_nv += self.bias[columns].to(device, dtype)
            yield columns, z_nv

    def capped(self, z_nv: Tensor) -> tuple[Tensor, Tensor | float]:
        """Y, and its slope in z; z is overwritten."""
        z_nv *= self.scale
        slope: Tensor | float = self.scale / self.temperature
        if self.softcap is not None:
            z_nv = torch.tanh_(z_nv.div_(self.softcap))
            slope = (1 - z_nv.square()).mul_(slope)
            z_nv = z_nv * self.softcap
        return z_nv.div_(self.temperature), slope


@torch.no_grad()
def partition(head: Head, hidden_BTN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum of exp(y), and the mean of y under p, both (B, T)."""
    flat = hidden_BTN.flatten(0, 1)
    found = [_partition(head, part, dtype) for part in flat.split(POSITIONS)] if len(flat) else []
    shape = hidden_BTN.shape[:2]
    if not found:
        none = hidden_BTN.new_zeros(shape, dtype=dtype)
        return none, none
    logs, means = zip(*found, strict=True)
    return torch.cat(logs).reshape(shape), torch.cat(means).reshape(shape)


def _partition(head: Head, hidden_nN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    top = hidden_nN.new_full((len(hidden_nN),), -math.inf, dtype=dtype)
    total, weighted = torch.zeros_like(top), torch.zeros_like(top)
    for _, z_nv in head.tiles(hidden_nN, dtype):
        y_nv = head.capped(z_nv)[0]
        higher = torch.maximum(top, y_nv.amax(1))
        before = torch.exp(top - higher)
        e_nv = torch.exp(y_nv - higher.unsqueeze(1))
        total = total * before + e_nv.sum(1)
        weighted = weighted * before + e_nv.mul_(y_nv).sum(1)
        top = higher
    return top + total.log(), weighted / total


class FusedHead(Factor):
    """Shares of a head's weight, or of its bias.

    Args:
        hidden_BTN: the states that were projected.
        target_BT: the targets' places in the vocabulary; any where they do not count.
        log_BT: the logarithm of the partition function.
        coefficients: see `Coefficients`; their precision is that of all tiles.
        head: the map itself, as it was when the loss was computed.
        of_bias: whether the shares are the bias's.
    """

    def __init__(
        self, hidden_BTN: Tensor, target_BT: Tensor, log_BT: Tensor, coefficients: Coefficients,
        head: Head, *, of_bias: bool = False,
    ):  # fmt: skip
        shape = head.weight.shape[:1] if of_bias else head.weight.shape
        super().__init__(shape, hidden_BTN, target_BT, log_BT, *coefficients.held, *head.held)
        self._hidden_BTN, self._target_BT, self._log_BT = hidden_BTN, target_BT, log_BT
        self._coefficients, self._head, self._of_bias = coefficients, head, of_bias
        self._dtype = log_BT.dtype

    @property
    def positions(self) -> int:
        return 0 if self._of_bias else self._target_BT.numel()

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`: the gradient through each direction, tile by tile."""
        if not len(directions_K):
            return directions_K.new_zeros(self.samples, 0)
        if self._of_bias:
            through = self._pushed([Q.unsqueeze(1) for Q in directions_K])
            return torch.stack([rows_BT1.sum((1, 2)) for rows_BT1 in through], 1)
        right = self._hidden_BTN.to(directions_K.dtype)
        found = [(rows * right).sum((1, 2)) for rows in self._pushed(list(directions_K))]
        return torch.stack(found, 1)

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        right = self._hidden_BTN.to(directions_K.dtype)
        pairs = zip(self._pushed(list(low.left)), low.right, strict=True)
        return torch.stack([(rows * (right @ R_Nr)).sum((1, 2)) for rows, R_Nr in pairs], 1)

    def sketch(self, left_KMr: Tensor, right_KNr: Tensor) -> Tensor:
        """See `Factor.sketch`: one pass over the tiles for all directions."""
        states_KBTr = self._hidden_BTN.to(right_KNr.dtype) @ right_KNr.unsqueeze(1)
        rows_KBTr = torch.stack(self._pushed(list(left_KMr)))
        return (rows_KBTr.mT @ states_KBTr).transpose(0, 1)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        (rows_BT1,) = self._pushed([left.unsqueeze(1)])
        if self._of_bias:
            return rows_BT1.sum((1, 2)) * right.reshape(())
        return (rows_BT1.squeeze(2) * (self._hidden_BTN.to(right.dtype) @ right)).sum(1)

    @torch.no_grad()
    def total(self, dtype: torch.dtype) -> Tensor:
        found = self._hidden_BTN.new_zeros(self.shape, dtype=dtype)
        flat = self._hidden_BTN.flatten(0, 1)
        for rows, columns, g_nv in self._tiles():
            g_nv = g_nv.to(dtype)
            found[columns] += g_nv.sum(0) if self._of_bias else g_nv.T @ flat[rows].to(dtype)
        return found

    def select(self, samples: Tensor) -> FusedHead:
        return self._with(lambda t: t[samples], self._head)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> FusedHead:
        return self._with(change, self._head.mapped(change))

    def _with(self, change: Callable[[Tensor], Tensor], head: Head) -> FusedHead:
        hidden, target, log = map(change, (self._hidden_BTN, self._target_BT, self._log_BT))
        coefficients = self._coefficients.mapped(change)
        return FusedHead(hidden, target, log, coefficients, head, of_bias=self._of_bias)

    @torch.no_grad()
    def _pushed(self, matrices_VR: Sequence[Tensor]) -> list[Tensor]:
        """sum_v g_btv M_vr for each matrix M, (B, T, R), all from one pass over the tiles."""
        B, T = self._target_BT.shape
        found = [M.new_zeros(B * T, M.shape[1]) for M in matrices_VR]
        for rows, columns, g_nv in self._tiles():
            for sums, M in zip(found, matrices_VR, strict=True):
                sums[rows] += g_nv.to(M.dtype) @ M[columns]
        return [sums.reshape(B, T, M.shape[1]) for sums, M in zip(found, matrices_VR, strict=True)]

    def _tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(positions, columns, g of these), the gradient of the logits tile by tile."""
        hidden, targets = self._hidden_BTN.flatten(0, 1), self._target_BT.flatten()
        logs = self._log_BT.reshape(-1, 1)
        coefficients = self._coefficients.mapped(lambda t: t.reshape(-1, 1))
        for start in range(0, len(hidden), POSITIONS):
            rows = slice(start, min(start + POSITIONS, len(hidden)))
            own = coefficients.mapped(lambda t, rows=rows: t[rows])  # type: ignore[misc]
            for columns, z_nv in self._head.tiles(hidden[rows], self._dtype):
                y_nv, slope = self._head.capped(z_nv)
                g_nv = self._in_y(y_nv.sub_(logs[rows]), targets[rows], own, columns)
                yield rows, columns, g_nv.mul_(slope)

    def _in_y(
        self, log_p_nv: Tensor, targets_n: Tensor, own: Coefficients, columns: slice
    ) -> Tensor:
        """The gradient in y."""
        p_nv = log_p_nv.exp()
        g_nv = p_nv * own.softmax
        if own.entropy is not None:
            g_nv += p_nv.mul_(log_p_nv) * own.entropy
        if own.weights is not None:
            w_V = self._head.class_weights
            g_nv += own.weights if w_V is None else own.weights * w_V[columns].to(g_nv)
        place = (targets_n - columns.start).unsqueeze(1)
        inside = (place >= 0) & (place < g_nv.shape[1])
        place = place.clamp(0, g_nv.shape[1] - 1)
        return g_nv.scatter_add_(1, place, torch.where(inside, own.target, 0.0).to(g_nv))
