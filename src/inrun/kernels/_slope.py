"""Adam's slope before a step, in one pass: `AdamRule.slope` where only the gradient enters."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.kernels._numba import array, compiled, over_parts


class SlopeNumbers(NamedTuple):
    """The step's numbers.

    `tiny` and `untouched` as for `settle_adam`. The second moment without the gradient is `kept` v,
    with it `entering` y^2 more. `bend`, `gain` and `eps` make the slope.
    """

    tiny: float
    untouched: float
    kept: float
    entering: float
    eps: float
    bend: float
    gain: float


def adam_slope(y: Tensor, m: Tensor, v: Tensor, numbers: SlopeNumbers) -> Tensor:
    """The coefficient, elementwise.

    Args:
        y: the gradient as it enters the moments.
        m: first moment before the step.
        v: second moment before it.
        numbers: the step's.
    """
    found = torch.empty_like(y)
    flat = [*(array(t).reshape(-1) for t in (y, m, v)), found.numpy().reshape(-1)]
    row = np.array([*numbers, 0.0], flat[0].dtype)
    loop = compiled(_loop)
    over_parts(lambda begin, end: loop(*flat, row, begin, end), y.numel())
    return found


def _loop(
    y: Any, m: Any, v: Any, found: Any, numbers: Any, begin: int, end: int
) -> None:  # pragma: no cover - compiled
    tiny, untouched, kept, entering = numbers[0], numbers[1], numbers[2], numbers[3]
    eps, bend, gain, zero = numbers[4], numbers[5], numbers[6], numbers[7]
    y, m, v, found = y[begin:end], m[begin:end], v[begin:end], found[begin:end]
    for i in range(end - begin):
        before = v[i] * kept
        root_before = np.sqrt(max(before, tiny))
        root = np.sqrt(max(before + entering * y[i] * y[i], tiny))
        bent = m[i] * y[i] / (root + root_before) / (root_before + eps)
        found[i] = (gain + bend * bent) / (root + eps) if root > untouched else zero
