"""Shares that are sums of outer products: every matrix that multiplies rows of activations.

    share_b = sum_t left_bt right_bt^T          (M x N)

Linear: left the output gradient, right the input. Its transpose (HF Conv1D, x @ W): the reverse.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._factor import Factor
from inrun.factors._low_rank import LowRank


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
        left, right = self._left_BTM.to(directions_K.dtype), self._right_BTN.to(directions_K.dtype)
        pushed = [(left * (right @ Q.T)).sum((1, 2)) for Q in directions_K]
        return torch.stack(pushed, 1) if pushed else left.new_zeros(B, 0)

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        """See `Factor.contract_low_rank`: two thin products."""
        dtype = directions_K.dtype
        left, right = self._left_BTM.to(dtype), self._right_BTN.to(dtype)
        thin = [((left @ L) * (right @ R)).sum((1, 2)) for L, R in zip(*low, strict=True)]
        return torch.stack(thin, 1)

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
        on_left = self._left_BTM.to(left.dtype) @ left
        return (on_left * (self._right_BTN.to(left.dtype) @ right)).sum(1)
