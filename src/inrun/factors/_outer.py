"""Shares that are sums of outer products: matrices that multiply rows of activations, and tables.

    share_b = sum_t left_bt right_bt^T          (M x N)
    share_b = sum_t e(index_bt) rows_bt^T       (V x N), e(v) the v-th unit vector

Linear: left the output gradient, right the input. Its transpose (HF Conv1D, x @ W): the reverse. A
table that is read by row (an embedding) has an index in place of the left factor. A stack of E
matrices, each of which multiplies the rows of its own group (experts), has a group beside them:

    share_b of matrix e = sum over t with group_bt = e of left_bt right_bt^T      (M x N)

Rows of no group (E) are left out. Letters: B samples, T positions, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._factor import Buildable, Factor
from inrun.factors._owned import products_by_owner
from inrun.factors._trial import LowRank, thin_product


def _pushed(Q: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    return (left_bTM * (right_bTN @ Q.T)).sum((1, 2))


def _met(L_Mr: Tensor, R_Nr: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    sides = (left_bTM, L_Mr), (right_bTN, R_Nr)
    a_Pr, b_Pr = (thin_product(t.flatten(0, 1), side) for t, side in sides)
    return (a_Pr * b_Pr).view(*left_bTM.shape[:2], L_Mr.shape[1]).sum((1, 2))


def _met_once(left_M: Tensor, right_N: Tensor, left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    return ((left_bTM @ left_M) * (right_bTN @ right_N)).sum(1)


def _grams_met(left_bTM: Tensor, right_bTN: Tensor) -> Tensor:
    grams = left_bTM @ left_bTM.mT, right_bTN @ right_bTN.mT
    return (grams[0] * grams[1]).sum((1, 2)).clamp_min(0)


def thin(rows_BTM: Tensor, sides_KMr: Tensor) -> Tensor:
    """Each position's coordinates in each basis, (B, K, T, r): one product of two matrices."""
    B, T, M = rows_BTM.shape
    K, _, r = sides_KMr.shape
    sides = sides_KMr[0] if K == 1 else sides_KMr.transpose(0, 1).reshape(M, K * r)
    met = thin_product(rows_BTM.reshape(B * T, M).to(sides.dtype), sides)
    return met.view(B, T, K, r).transpose(1, 2)


class Outer(Buildable):
    """left (B, T, M) and right (B, T, N); shares (M, N)."""

    def __init__(self, left_BTM: Tensor, right_BTN: Tensor):
        shape = torch.Size((left_BTM.shape[2], right_BTN.shape[2]))
        super().__init__(shape, left_BTM, right_BTN)
        self._left_BTM, self._right_BTN = left_BTM, right_BTN

    @property
    def each(self) -> int:
        return self._left_BTM.shape[1]

    def push(self, Q: Tensor) -> Tensor:
        return self._in_blocks(partial(_pushed, Q), Q.dtype, self._left_BTM.shape[2])

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        """See `Factor.contract_low_rank`: two thin products."""
        thin = [self._in_blocks(partial(_met, L, R), L.dtype, 0) for L, R in zip(*low, strict=True)]
        return torch.stack(thin, 1)

    def squares(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.squares`: <L L^T, R R^T>, two T x T products, where they are less work."""
        T, (M, N) = self.each, self.shape
        if T * (M + N) >= M * N:
            return super().squares(dtype)
        return self._in_blocks(_grams_met, dtype, 3 * T)

    def coordinates(self, left_KMr: Tensor, right_KNr: Tensor) -> tuple[Tensor, Tensor]:
        """See `Factor.coordinates`: two thin products."""
        return thin(self._left_BTM, left_KMr), thin(self._right_BTN, right_KNr)

    def _in_blocks(
        self, form: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, built: int
    ) -> Tensor:
        """A form (B,) of left and right, over blocks of samples whose own numbers fit the limit.

        Args:
            form: of left and right in the given dtype.
            dtype: what both are converted to.
            built: numbers per position that the form makes on its way.
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
        return self._left_BTM.shape[0] * self._left_BTM.shape[1]

    def shares(self, samples: slice, dtype: torch.dtype) -> Tensor:
        left, right = self._left_BTM[samples].to(dtype), self._right_BTN[samples].to(dtype)
        return torch.bmm(left.transpose(1, 2), right)

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one matrix product."""
        return self._left_BTM.to(dtype).flatten(0, 1).T @ self._right_BTN.to(dtype).flatten(0, 1)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Factor.contract_rank_one`: two matrix-vector products."""
        return self._in_blocks(partial(_met_once, left, right), left.dtype, 0)


class Indexed(Factor):
    """index (B, T) into V rows, and the rows' gradients (B, T, N); shares (V, N)."""

    def __init__(self, index_BT: Tensor, rows_BTN: Tensor, table_rows: int):
        self._index_BT, self._rows_BTN, self._rest = index_BT.long(), rows_BTN, (table_rows,)
        super().__init__(torch.Size((table_rows, rows_BTN.shape[2])), self._index_BT, rows_BTN)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`: gather and dot."""
        rows = self._rows_BTN.to(directions_K.dtype)
        dots = [(Q[self._index_BT] * rows).sum((1, 2)) for Q in directions_K]
        return torch.stack(dots, 1) if dots else rows.new_zeros(len(rows), 0)

    def squares(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.squares`: products of the rows of one place in the table."""

        def met(index_bT: Tensor, rows_bTN: Tensor) -> Tensor:
            same = index_bT.unsqueeze(2) == index_bT.unsqueeze(1)
            return ((rows_bTN @ rows_bTN.mT) * same).sum((1, 2)).clamp_min(0)

        T = self._index_BT.shape[1]
        if self.shape[0] < T:
            return super().squares(dtype)
        block = max(1, cost.samples_per_block(3 * T * T, dtype.itemsize, cost.CACHED_BYTES))
        pairs = zip(self._index_BT.split(block), self._rows_BTN.split(block), strict=True)
        return torch.cat([met(index, rows.to(dtype)) for index, rows in pairs])

    def coordinates(self, left_KMr: Tensor, right_KNr: Tensor) -> tuple[Tensor, Tensor]:
        """See `Factor.coordinates`: rows of the left basis are looked up."""
        return left_KMr[:, self._index_BT].transpose(0, 1), thin(self._rows_BTN, right_KNr)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        B, T, N = self._rows_BTN.shape
        shares = torch.zeros(B, self.shape[0], N, dtype=dtype, device=self._rows_BTN.device)
        index = self._index_BT.unsqueeze(2).expand(B, T, N)
        return shares.scatter_add_(1, index, self._rows_BTN.to(dtype))

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one sum by row."""
        rows = self._rows_BTN.to(dtype).flatten(0, 1)
        return rows.new_zeros(*self.shape).index_add_(0, self._index_BT.flatten(), rows)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        return (left[self._index_BT] * (self._rows_BTN.to(right.dtype) @ right)).sum(1)


class GroupedOuter(Factor):
    """left (B, T, M), right (B, T, N), group (B, T) from 0 to E, of which E is none.

    Shares are (E, M, N).
    """

    def __init__(self, left_BTM: Tensor, right_BTN: Tensor, group_BT: Tensor, groups: int):
        shape = torch.Size((groups, left_BTM.shape[2], right_BTN.shape[2]))
        super().__init__(shape, left_BTM, right_BTN, group_BT)
        self._left_BTM, self._right_BTN, self._group_BT = left_BTM, right_BTN, group_BT
        self._rest = (groups,)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`: each direction meets the rows of each group."""
        B, T = self._group_BT.shape
        values = directions_K.new_zeros(B * T, len(directions_K))
        for e, rows, left, right in self._by_group(directions_K.dtype):
            for k, Q_EMN in enumerate(directions_K):
                values[rows, k] = ((left @ Q_EMN[e]) * right).sum(1)
        return values.reshape(B, T, len(directions_K)).sum(1)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        met_BT = ((self._left_BTM.to(right) @ right) * self._right_BTN.to(right)).sum(2)
        padded = torch.cat([left, left.new_zeros(1)])
        return (padded[self._group_BT] * met_BT).sum(1)

    @property
    def is_stack(self) -> bool:
        """See `Factor.is_stack`."""
        return True

    def sketch_stack(self, left_KEMr: Tensor, right_KENr: Tensor) -> Tensor:
        """See `Factor.sketch_stack`."""
        each = torch.arange(self.samples, device=self._group_BT.device)
        return self.sketch_stack_of(each, self.samples, left_KEMr, right_KENr)

    def sketch_stack_of(
        self, owner_P: Tensor, samples: int, left_KEMr: Tensor, right_KENr: Tensor
    ) -> Tensor:
        """As `sketch_stack` where rows are slots with an owner each, (P,): two thin products.

        Of the rows of each group; their products are then summed by owner and group.
        """
        P, T = self._group_BT.shape
        K, E, _, r = left_KEMr.shape
        sides = [s.new_zeros(P * T, K, 1, r) for s in (left_KEMr, right_KENr)]
        for e, rows, left, right in self._by_group(left_KEMr.dtype):
            sides[0][rows] = thin(left.unsqueeze(1), left_KEMr[:, e])
            sides[1][rows] = thin(right.unsqueeze(1), right_KENr[:, e])
        group = self._group_BT.flatten()
        run = owner_P.repeat_interleave(T) * E + group.clamp(max=E - 1)  # of no group: zeros
        found: Tensor = products_by_owner(run, samples * E, *sides).unflatten(0, (samples, E))
        return found.transpose(1, 2)

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: one matrix product per group."""
        found = self._left_BTM.new_zeros(self.shape, dtype=dtype)
        for e, _, left, right in self._by_group(dtype):
            found[e] = left.T @ right
        return found

    def _by_group(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(group, its rows, both factors there), for groups that have rows."""
        group, order = self._group_BT.flatten().sort(stable=True)
        counts = torch.bincount(group, minlength=self.shape[0] + 1).tolist()
        left, right = (t.flatten(0, 1) for t in (self._left_BTM, self._right_BTN))
        for e, rows in enumerate(order.split(counts)[:-1]):
            if len(rows):
                yield e, rows, left[rows].to(dtype), right[rows].to(dtype)
