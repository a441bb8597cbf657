"""Shares that are sums of outer products: every matrix that multiplies rows of activations.

    share_b = sum_t left_bt right_bt^T          (M x N)

Linear: left the output gradient, right the input. Its transpose (HF Conv1D, x @ W): the reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._factor import Factor
from inrun.factors._low_rank import LowRank


def _pushed(Q: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    return (left_bTM * (right_bTN @ Q.T)).sum((1, 2))


def _met(L_Mr: Tensor, R_Nr: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    return ((left_bTM @ L_Mr) * (right_bTN @ R_Nr)).sum((1, 2))


def _met_once(left_M: Tensor, right_N: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    return ((left_bTM @ left_M) * (right_bTN @ right_N)).sum(1)


class Outer(Factor):
    """left (B, T, M) and right (B, T, N)."""

    def __init__(self, left_BTM: Tensor, right_BTN: Tensor):
        self._left_BTM, self._right_BTN = left_BTM, right_BTN

    @property
    def shape(self) -> torch.Size:
        """(M, N)."""
        return torch.Size((self._left_BTM.shape[2], self._right_BTN.shape[2]))

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Both factors."""
        return (self._left_BTM, self._right_BTN)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`; the cheaper of two ways, see `inrun.factors.cost`."""
        K = directions_K.shape[0]
        B, T, M = self._left_BTM.shape
        N = self._right_BTN.shape[2]
        if B and cost.materialize_is_cheaper(T, M, N, K, directions_K.element_size()):
            return self._contract_materialized(directions_K)
        pushed = [self._in_blocks(partial(_pushed, Q), Q.dtype, M) for Q in directions_K]
        return torch.stack(pushed, 1) if pushed else directions_K.new_zeros(B, 0)

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        """See `Factor.contract_low_rank`: two thin products."""
        thin = [self._in_blocks(partial(_met, L, R), L.dtype, 0) for L, R in zip(*low, strict=True)]
        return torch.stack(thin, 1)

    def _in_blocks(
        self, form: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, built: int
    ) -> Tensor:
        """A form (B,) of left and right, over blocks of samples whose own numbers fit the limit.

        Args:
            form: of left and right in the given dtype.
            dtype: what both are converted to.
            built: numbers a position that the form makes on its way.
        """
        B, T, _ = self._left_BTM.shape
        held = self._left_BTM, self._right_BTN
        made = built + sum(t.shape[2] for t in held if t.dtype != dtype)
        limit = cost.CACHED_BYTES if held[0].device.type == "cpu" else cost.DEVICE_BYTES
        block = max(1, cost.samples_per_block(T * made, dtype.itemsize, limit) if made else B)
        parts = [
            form(*(t[b : b + block].to(dtype) for t in held)) for b in range(0, max(1, B), block)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def positions(self) -> int:
        """B * T."""
        return self._left_BTM.shape[0] * self._left_BTM.shape[1]

    def _contract_materialized(self, directions_K: Tensor) -> Tensor:
        M, N = self.shape
        flat_KP = directions_K.reshape(directions_K.shape[0], -1)
        block = cost.samples_per_block(M * N, directions_K.element_size())
        parts = [
            self._shares(slice(b, b + block), directions_K.dtype).flatten(1) @ flat_KP.T
            for b in range(0, self._left_BTM.shape[0], block)
        ]
        return torch.cat(parts)

    def _shares(self, samples: slice, dtype: torch.dtype) -> Tensor:
        left, right = self._left_BTM[samples].to(dtype), self._right_BTN[samples].to(dtype)
        return torch.bmm(left.transpose(1, 2), right)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`."""
        return self._shares(slice(None), dtype)

    def select(self, samples: Tensor) -> Outer:
        """See `Factor.select`."""
        return Outer(self._left_BTM[samples], self._right_BTN[samples])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Outer:
        """See `Factor.mapped`."""
        return Outer(change(self._left_BTM), change(self._right_BTN))

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one matrix product."""
        return self._left_BTM.to(dtype).flatten(0, 1).T @ self._right_BTN.to(dtype).flatten(0, 1)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Factor.contract_rank_one`: two matrix-vector products."""
        return self._in_blocks(partial(_met_once, left, right), left.dtype, 0)
