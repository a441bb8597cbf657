"""Shares of a table that was read by row: embeddings.

share_b = sum_t  e(index_bt) rows_bt^T      (V x N), e(v) the v-th unit vector
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors._factor import Factor


class Indexed(Factor):
    """index (B, T) into V rows, and the rows' gradients (B, T, N)."""

    def __init__(self, index_BT: Tensor, rows_BTN: Tensor, table_rows: int):
        self._index_BT, self._rows_BTN, self._V = index_BT.long(), rows_BTN, table_rows

    @property
    def shape(self) -> torch.Size:
        """(V, N)."""
        return torch.Size((self._V, self._rows_BTN.shape[2]))

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Indices and rows."""
        return (self._index_BT, self._rows_BTN)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`: gather and dot."""
        rows = self._rows_BTN.to(directions_K.dtype)
        dots = [(Q[self._index_BT] * rows).sum((1, 2)) for Q in directions_K]
        return torch.stack(dots, 1) if dots else rows.new_zeros(len(rows), 0)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`."""
        B, T, N = self._rows_BTN.shape
        shares = torch.zeros(B, self._V, N, dtype=dtype, device=self._rows_BTN.device)
        index = self._index_BT.unsqueeze(2).expand(B, T, N)
        return shares.scatter_add_(1, index, self._rows_BTN.to(dtype))

    def select(self, samples: Tensor) -> Indexed:
        """See `Factor.select`."""
        return Indexed(self._index_BT[samples], self._rows_BTN[samples], self._V)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Indexed:
        """See `Factor.mapped`."""
        return Indexed(change(self._index_BT), change(self._rows_BTN), self._V)

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one sum by row."""
        rows = self._rows_BTN.to(dtype).flatten(0, 1)
        return rows.new_zeros(*self.shape).index_add_(0, self._index_BT.flatten(), rows)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Factor.contract_rank_one`."""
        return (left[self._index_BT] * (self._rows_BTN.to(right.dtype) @ right)).sum(1)
