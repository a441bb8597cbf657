"""A gradient's length and its component along a direction of rank one, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from inrun.kernels._numba import array, compiled, over_parts


def probe_and_squares(matrix: Tensor, left: Tensor, right: Tensor) -> tuple[float, float]:
    """Left^T matrix right, and the sum of squares of the matrix (M, N)."""
    arrays = [array(t) for t in (matrix, left, right)]
    loop = compiled(_loop)
    columns = max(1, matrix.shape[1])
    cuts = over_parts(lambda b, e: loop(*arrays, b // columns, e // columns), matrix.numel())
    probe, squares = np.sum(cuts, axis=0)
    return float(probe), float(squares)


def _loop(
    matrix: Any, left: Any, right: Any, begin: int, end: int
) -> Any:  # pragma: no cover - compiled
    sums = np.zeros(2)
    for row in range(begin, end):
        along, squares = 0.0, 0.0
        for column in range(matrix.shape[1]):
            value = np.float64(matrix[row, column])
            along += value * right[column]
            squares += value * value
        sums[0] += along * left[row]
        sums[1] += squares
    return sums
