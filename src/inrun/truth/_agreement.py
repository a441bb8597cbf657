"""How well two sets of values agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """Pearson's R, the ratio of the sums, and the relative error of the whole vector.

    R says little where the true values hardly differ; the relative error then tells.
    """

    pearson: float
    sum_ratio: float
    relative_error: float


def agreement(values: np.ndarray, truth: np.ndarray) -> Agreement:
    """Compares values with the truth, both (n,).

    Example:
        >>> import numpy as np
        >>> agreement(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        Agreement(pearson=1.0, sum_ratio=2.0, relative_error=1.0)
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    da, db = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((da @ da) * (db @ db)))
    pearson = float(da @ db) / spread if spread > 0 else float("nan")
    total, size = float(b.sum()), float(np.linalg.norm(b))
    return Agreement(
        pearson,
        float(a.sum()) / total if total else float("nan"),
        float(np.linalg.norm(a - b)) / size if size else float("nan"),
    )
