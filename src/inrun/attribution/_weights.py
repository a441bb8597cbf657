"""Tells whether weights moved. Version counters do not: fused optimizers and `.data` skip them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def weights_mark(parameters: Iterable[Tensor]) -> tuple[int, ...]:
    """A checksum of each parameter: the sum of its bits, read as integers of 64.

    It is exact, where a sum in the parameter's own precision would miss a small step, and as fast
    as memory is, where a sum in double precision is many times slower.
    """
    with torch.no_grad():
        sums = [_bits(p.detach().reshape(-1)) for p in parameters]
        return tuple(torch.stack(sums).cpu().tolist()) if sums else ()


def _bits(flat: Tensor) -> Tensor:
    words = 8 // flat.element_size()
    whole = flat.numel() // words * words
    rest = flat.new_zeros(words)
    rest[: flat.numel() - whole] = flat[whole:]
    if flat.data_ptr() % 8:
        flat = flat.clone()  # a view into a larger buffer: 64 bits must begin where they may
    return flat[:whole].view(torch.int64).sum() + rest.view(torch.int64).sum()
