"""Shares whose slots lie anywhere: each slot has an owner, and a sample's share sums its own.

share_b = sum over p with owner_p = b of slot_p          (P slots, B samples)

The slots are a factor of their own with one slot a row, so that each form (outer, indexed,
convolution) is contracted as ever, and sums by owner follow: a long document does not pad the
others, and an expert's tokens cost what they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._factor import Dense, Factor
from inrun.factors._trial import LowRank

TOGETHER = 8  # slots per sample from which on a sample's are multiplied together


def by_owner(slots: Factor, owner_P: Tensor, samples: int) -> Factor:
    """Shares of B samples from those of P slots; small ones are summed at once."""
    if isinstance(slots, Dense):
        (shares_P,) = slots.held
        return Dense(_summed(shares_P, owner_P, samples))
    return Owned(slots, owner_P, samples)


def _summed(values_P: Tensor, owner_P: Tensor, samples: int) -> Tensor:
    """Sums over each owner's slots, (B, ...)."""
    return values_P.new_zeros(samples, *values_P.shape[1:]).index_add_(0, owner_P, values_P)


def products_by_owner(
    owner_P: Tensor, samples: int, left_PKTr: Tensor, right_PKTr: Tensor
) -> Tensor:
    """Each owner's sum over its slots of left^T right, (B, K, r, r).

    An owner's slots are multiplied together where it has many; else, and on a GPU, which would wait
    for the counts, one by one, so many at a time that their products stay in a cache.
    """
    P, K, _, r = left_PKTr.shape
    found = left_PKTr.new_zeros(samples, K, r, right_PKTr.shape[3])
    if len(owner_P) >= TOGETHER * samples and owner_P.device.type == "cpu":
        return _by_run(found, owner_P, left_PKTr, right_PKTr)
    block = max(1, cost.samples_per_block(K * r * r, found.element_size(), cost.CACHED_BYTES))
    for start in range(0, P, block):
        some = slice(start, start + block)
        found.index_add_(0, owner_P[some], left_PKTr[some].mT @ right_PKTr[some])
    return found


def _by_run(found: Tensor, owner_P: Tensor, left_PKTr: Tensor, right_PKTr: Tensor) -> Tensor:
    """Fills (B, K, r, r) with each owner's sum over its slots of left^T right."""
    if not bool((owner_P[1:] >= owner_P[:-1]).all()):
        owner_P, order = owner_P.sort()
        left_PKTr, right_PKTr = left_PKTr[order], right_PKTr[order]
    sides = (t.transpose(0, 1).flatten(1, 2) for t in (left_PKTr, right_PKTr))
    counts = (left_PKTr.shape[2] * torch.bincount(owner_P, minlength=len(found))).tolist()
    runs = zip(*(side.split(counts, 1) for side in sides), strict=True)
    for b, (left, right) in enumerate(runs):
        torch.bmm(left.mT, right, out=found[b])
    return found


class Owned(Factor):
    """Slots (a factor of P rows), and the owner of each (P,), from 0 to B-1."""

    def __init__(self, slots: Factor, owner_P: Tensor, samples: int):
        super().__init__(slots.shape, *slots.held, owner_P)
        self._slots, self._owner_P, self._samples = slots, owner_P, samples

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def positions(self) -> int:
        """P, where there is a matrix to multiply them."""
        return self._slots.positions

    def contract(self, directions_K: Tensor) -> Tensor:
        return self._by_sample(self._slots.contract(directions_K))

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        return self._by_sample(self._slots.contract_low_rank(low, directions_K))

    def sketch(self, left_KMr: Tensor, right_KNr: Tensor) -> Tensor:
        """See `Factor.sketch`: of other forms so many slots at a time that a cache holds them."""
        pair = self._slots.coordinates(left_KMr, right_KNr)
        if pair is not None:
            return products_by_owner(self._owner_P, self._samples, *pair)
        K, _, r = left_KMr.shape
        found = left_KMr.new_zeros(self._samples, K, r, right_KNr.shape[2])
        block = max(1, cost.samples_per_block(K * r * r, found.element_size(), cost.CACHED_BYTES))
        for some in torch.arange(len(self._owner_P)).split(block):
            part = self._slots.select(some.to(self._owner_P.device))
            found.index_add_(0, self._owner_P[some], part.sketch(left_KMr, right_KNr))
        return found

    @property
    def is_stack(self) -> bool:
        """See `Factor.is_stack`."""
        return self._slots.is_stack

    def sketch_stack(self, left_KEMr: Tensor, right_KENr: Tensor) -> Tensor:
        """See `Factor.sketch_stack`."""
        return self._slots.sketch_stack_of(self._owner_P, self._samples, left_KEMr, right_KENr)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        return self._by_sample(self._slots.contract_rank_one(left, right))

    def _by_sample(self, values_P: Tensor) -> Tensor:
        return _summed(values_P, self._owner_P, self._samples)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`: a sample at a time, so that no slot's share is ever built."""
        device = self._owner_P.device
        shares = torch.zeros(self._samples, *self.shape, dtype=dtype, device=device)
        for b in range(self._samples):
            slots = (self._owner_P == b).nonzero().flatten()
            if len(slots):
                shares[b] = self._slots.select(slots).total(dtype)
        return shares

    def select(self, samples: Tensor) -> Owned:
        pairs = samples.unsqueeze(1) == self._owner_P.unsqueeze(0)
        owner, slots = pairs.nonzero(as_tuple=True)
        return Owned(self._slots.select(slots), owner, len(samples))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Owned:
        return Owned(self._slots.mapped(change), change(self._owner_P), self._samples)

    def total(self, dtype: torch.dtype) -> Tensor:
        return self._slots.total(dtype)
