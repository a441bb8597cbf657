"""Tells whether weights moved between two looks at them.

Version counters tell of every ordinary edit, and fused optimizers and `.data` go past them; those
edit the whole of a parameter, so that a checksum of a part of it sees them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from inrun.capture import Reading
from inrun.kernels import few
from inrun.shards import own_part

CHUNKS, CHUNK = 16, 4096  # what is read of a large parameter: evenly spaced runs of elements


class WeightsMark:
    """Versions and checksums: sums of bits, read as integers of 64.

    Such a sum is exact, where one in the parameter's own precision would miss a small step. Of
    sharded parameters they are those of this process's parts.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        parameters = list(parameters)
        self._versions = [p._version for p in parameters]
        with torch.no_grad():
            sums = [_bits(t) for t in few(_part(own_part(p)) for p in parameters)]
            self._checksums = Reading(torch.stack(sums) if sums else torch.zeros(0))

    def same_versions(self, other: WeightsMark) -> bool:
        """Whether version counters tell of no edit; nothing is read from a device for it."""
        return self._versions == other._versions

    def same(self, other: WeightsMark) -> bool:
        """Whether neither versions nor checksums do."""
        return self.same_versions(other) and self.same_numbers(other)

    def same_numbers(self, other: WeightsMark) -> bool:
        """Whether checksums tell of no edit; it waits for the device."""
        here, there = (mark._checksums.wait()[0] for mark in (self, other))
        return here.equal(there)


@torch.no_grad()
def checksum(t: Tensor) -> Tensor:
    """Of a tensor, or of this process's part of it."""
    return _bits(_part(own_part(t.detach())).reshape(-1))


def _part(t: Tensor) -> Tensor:
    if t.numel() <= CHUNKS * CHUNK:
        return t
    rows = t.reshape(-1)[: t.numel() // CHUNKS * CHUNKS].view(CHUNKS, -1)
    return rows[:, -CHUNK:].reshape(-1)


def _bits(flat: Tensor) -> Tensor:
    words = 8 // flat.element_size()
    whole = flat.numel() // words * words
    if flat.data_ptr() % 8:
        flat = flat.clone()  # a view into a larger buffer: 64 bits must begin where they may
    sum_of_whole = flat[:whole].view(torch.int64).sum()
    if whole == flat.numel():
        return sum_of_whole
    rest = flat.new_zeros(words)
    rest[: flat.numel() - whole] = flat[whole:]
    return sum_of_whole + rest.view(torch.int64).sum()
