"""Adam's passes on a GPU: one launch a parameter, by Triton.

The kernels are in `_on_gpu`, and what they compute is said in `_settled` and `_slope`, whose loops
they repeat. The first time on a device the two are compared there (see `_trial`).

Letters: K targets, P elements, N programs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun.kernels import _triton
from inrun.kernels._settled import SettlingNumbers
from inrun.kernels._slope import SlopeNumbers


def settle_adam(
    gradient: Tensor,
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    opening_K: Tensor,
    closing_K: Tensor,
    directions_K: Tensor | None,
    numbers: SettlingNumbers,
) -> Tensor | None:
    """See `_settled.settle_adam`; None where Triton cannot."""
    K, N, writes = len(opening_K), _triton.programs(gradient.numel()), directions_K is not None
    sums_2KN = gradient.new_empty(2, K, N)
    started = _triton.launched(
        "settle", gradient,
        gradient, weight, m, v, opening_K, closing_K, directions_K if writes else opening_K,
        sums_2KN, gradient.numel(), K, *_triton.bits(numbers, gradient.dtype),
        WRITES=writes,
    )  # fmt: skip
    return sums_2KN.sum(2, dtype=torch.float64) if started else None


def adam_slope(y: Tensor, m: Tensor, v: Tensor, numbers: SlopeNumbers) -> Tensor | None:
    """See `_slope.adam_slope`; None where Triton cannot."""
    found = torch.empty_like(y)
    started = _triton.launched(
        "slope", y, y, m, v, found, y.numel(), *_triton.bits(numbers, y.dtype)
    )
    return found if started else None
