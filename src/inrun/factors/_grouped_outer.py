"""Shares of a stack of matrices, each of which multiplies the rows of its own group: experts.

    share_b of matrix e = sum over t with group_bt = e of left_bt right_bt^T      (M x N)

Rows of no group (E) are left out. Letters: E matrices, B samples, T positions, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from inrun.factors._factor import Factor


class GroupedOuter(Factor):
    """left (B, T, M), right (B, T, N), group (B, T) from 0 to E, of which E is none."""

    def __init__(self, left_BTM: Tensor, right_BTN: Tensor, group_BT: Tensor, groups: int):
        self._left_BTM, self._right_BTN = left_BTM, right_BTN
        self._group_BT, self._E = group_BT, groups

    @property
    def shape(self) -> torch.Size:
        """(E, M, N)."""
        return torch.Size((self._E, self._left_BTM.shape[2], self._right_BTN.shape[2]))

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Both factors and the groups."""
        return (self._left_BTM, self._right_BTN, self._group_BT)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`: each direction meets the rows of each group."""
        B, T = self._group_BT.shape
        values = directions_K.new_zeros(B * T, len(directions_K))
        for e, rows, left, right in self._by_group(directions_K.dtype):
            for k, Q_EMN in enumerate(directions_K):
                values[rows, k] = ((left @ Q_EMN[e]) * right).sum(1)
        return values.reshape(B, T, len(directions_K)).sum(1)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Factor.contract_rank_one`."""
        met_BT = ((self._left_BTM.to(right) @ right) * self._right_BTN.to(right)).sum(2)
        padded = torch.cat([left, left.new_zeros(1)])
        return (padded[self._group_BT] * met_BT).sum(1)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`: sample by sample."""
        rows = [self.select(torch.tensor([b])).total(dtype) for b in range(self.samples)]
        return torch.stack(rows) if rows else self._left_BTM.new_zeros(0, *self.shape, dtype=dtype)

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one matrix product per group."""
        found = self._left_BTM.new_zeros(self.shape, dtype=dtype)
        for e, _, left, right in self._by_group(dtype):
            found[e] = left.T @ right
        return found

    def select(self, samples: Tensor) -> GroupedOuter:
        """See `Factor.select`."""
        return self.mapped(lambda t: t[samples])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> GroupedOuter:
        """See `Factor.mapped`."""
        left, right, group = map(change, self.held)
        return GroupedOuter(left, right, group, self._E)

    def _by_group(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(group, its rows, both factors there), for groups that have rows."""
        group, order = self._group_BT.flatten().sort(stable=True)
        counts = torch.bincount(group, minlength=self._E + 1).tolist()
        left, right = (t.flatten(0, 1) for t in (self._left_BTM, self._right_BTN))
        for e, rows in enumerate(order.split(counts)[: self._E]):
            if len(rows):
                yield e, rows, left[rows].to(dtype), right[rows].to(dtype)
