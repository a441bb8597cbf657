"""Shares of a layer norm's gain, in one pass over its input and its output's gradient.

Letters: B samples, T positions, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from inrun.kernels._numba import array, compiled, over_parts


def gain_shares(input_BTD: Tensor, gradient_BTD: Tensor, eps: float) -> Tensor:
    """Sum over positions of gradient * normalized input, (B, D).

    Args:
        input_BTD: what was normalized, over its last axis.
        gradient_BTD: of the output.
        eps: added to variances.
    """
    B, T, D = gradient_BTD.shape
    found = gradient_BTD.new_zeros(B, D)
    arrays = array(input_BTD), array(gradient_BTD), found.numpy()
    numbers = np.array([eps, 0.0, 1.0, 1 / max(1, D)], arrays[0].dtype)
    loop, sample = compiled(_loop), max(1, T * D)
    over_parts(lambda b, e: loop(*arrays, numbers, b // sample, e // sample), B * sample)
    return found


def _loop(
    inputs: Any, gradients: Any, found: Any, numbers: Any, begin: int, end: int
) -> None:  # pragma: no cover - compiled
    eps, zero, one, share_of_one = numbers[0], numbers[1], numbers[2], numbers[3]
    positions, features = inputs.shape[1], inputs.shape[2]
    for sample in range(begin, end):
        share = found[sample]
        for position in range(positions):
            x, gradient = inputs[sample, position], gradients[sample, position]
            mean, variance = zero, zero
            for i in range(features):
                mean += x[i]
            mean *= share_of_one
            for i in range(features):
                variance += (x[i] - mean) * (x[i] - mean)
            scale = one / np.sqrt(variance * share_of_one + eps)
            for i in range(features):
                share[i] += gradient[i] * ((x[i] - mean) * scale)
