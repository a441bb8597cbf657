"""How well two sets of values agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """Pearson's and Spearman's R, the ratio of the sums, and the whole vector's relative error.

    Correlations say little where the true values hardly differ, and are NaN where they do not
    differ at all; the relative error then tells.
    """

    pearson: float
    spearman: float
    sum_ratio: float
    relative_error: float


def agreement(values: np.ndarray, truth: np.ndarray) -> Agreement:
    """Compares values with the truth, both (n,).

    Example:
        >>> import numpy as np
        >>> agreement(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
        Agreement(pearson=1.0, spearman=1.0, sum_ratio=2.0, relative_error=1.0)
    """
    from scipy.stats import rankdata  # a second to import, and attaching needs none of it

    a, b = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    total, size = float(b.sum()), float(np.linalg.norm(b))
    return Agreement(
        _correlation(a, b),
        _correlation(rankdata(a), rankdata(b)),
        float(a.sum()) / total if total else float("nan"),
        float(np.linalg.norm(a - b)) / size if size else float("nan"),
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    da, db = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((da @ da) * (db @ db)))
    return float(da @ db) / spread if spread > 0 else float("nan")
