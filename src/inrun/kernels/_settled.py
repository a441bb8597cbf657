"""Direction and books of a step of Adam that was taken, in one pass over all arrays.

What is computed is `AdamRule.settled` met with the mean of two validation gradients; see there for
the formulas. Written in torch operations it is some twenty passes; here each array is read once.

Letters: K targets, P elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.kernels._numba import array, compiled, over_parts


class SettlingNumbers(NamedTuple):
    """The step's numbers.

    Roots of the second moment are taken of at least `tiny`, and where one is at most `untouched`
    nothing ever touched the element. `eps`: added to roots. `second`: of g^2 in the second moment.
    `first`: of g in the first. `gain` and `bend` make the direction, momentum displaced its term
    times `rate`, the weight before decay is w + `rate` m / root. `of_momentum` and `of_decay`: what
    the two sums are multiplied by.
    """

    tiny: float
    untouched: float
    eps: float
    second: float
    first: float
    gain: float
    bend: float
    rate: float
    of_momentum: float
    of_decay: float


def settle_adam(
    gradient: Tensor,
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    opening_K: Tensor,
    closing_K: Tensor,
    directions_K: Tensor | None,
    numbers: SettlingNumbers,
) -> Tensor:
    """Writes the directions, and gives what momentum and decay did, (2, K) float64.

    Args:
        gradient: consumed by the step.
        weight: after it.
        m: first moment after it.
        v: second moment after it.
        opening_K: validation gradients before it, (K, *shape).
        closing_K: and after it.
        directions_K: is written to; None where there is no use for directions.
        numbers: the step's.
    """
    K = len(opening_K)
    flat = [array(t).reshape(-1) for t in (gradient, weight, m, v)]
    rows = [array(t).reshape(K, -1) for t in (opening_K, closing_K)]
    kind = flat[0].dtype
    writes = directions_K is not None
    room = (
        directions_K.numpy().reshape(K, -1) if directions_K is not None else np.empty((K, 0), kind)
    )
    row = np.array([*numbers, 0.0, 1.0], kind)
    loop = compiled(_loop)

    def part(begin: int, end: int) -> Any:
        return loop(*flat, *rows, room, row, writes, begin, end)

    sums = np.sum(over_parts(part, gradient.numel()), axis=0)
    return torch.from_numpy(sums * np.array([[numbers.of_momentum], [numbers.of_decay]]))


def _loop(
    gradient: Any,
    weight: Any,
    m: Any,
    v: Any,
    opening: Any,
    closing: Any,
    room: Any,
    numbers: Any,
    writes: bool,
    begin: int,
    end: int,
) -> Any:  # pragma: no cover - compiled
    tiny, untouched, eps, second, first = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    gain, bend, rate, zero, one = numbers[5], numbers[6], numbers[7], numbers[10], numbers[11]
    K = opening.shape[0]
    sums = np.zeros((2, K))
    block = 4096  # what stands between the loops stays in the first cache
    slope, past, before = (
        np.empty(block, v.dtype),
        np.empty(block, v.dtype),
        np.empty(block, v.dtype),
    )
    for low in range(begin, end, block):
        high = min(low + block, end)
        # slices, each read from 0: an index that may be negative is wrapped around, element by
        # element
        g, w, m_now, v_now = gradient[low:high], weight[low:high], m[low:high], v[low:high]
        for i in range(high - low):
            root = np.sqrt(max(v_now[i], tiny))
            root_before = np.sqrt(max(v_now[i] - second * g[i] * g[i], tiny))
            momentum = (m_now[i] - first * g[i]) / (root_before + eps)
            inverse = one / (root + eps) if root > untouched else zero
            bent = g[i] / (root + root_before) * momentum
            slope[i] = (gain + bend * bent) * inverse
            past[i] = momentum
            before[i] = w[i] + rate * m_now[i] * inverse
        for k in range(K):
            at_first, at_last = opening[k, low:high], closing[k, low:high]
            if writes:
                row = room[k, low:high]
                for i in range(high - low):
                    row[i] = (at_first[i] + at_last[i]) * slope[i]
            # apart from what is written: a loop that both writes and adds up is compiled twice, and
            # takes the version that adds up in another order where arrays happen to lie close by
            of_momentum, of_decay = zero, zero
            for i in range(high - low):
                twice = at_first[i] + at_last[i]
                of_momentum += twice * past[i]
                of_decay += twice * before[i]
            sums[0, k] += of_momentum
            sums[1, k] += of_decay
    return sums
