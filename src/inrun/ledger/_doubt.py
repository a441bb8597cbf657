"""How far totals are in doubt where only some steps were scored (Horvitz and Thompson, 1952).

A step that is scored with probability 1/n stands for n, and its visits x = n * value come together
or not at all. With X_s the sum of one sample's visits in step s, its total and the total's variance
are both without bias:

    total = sum over scored steps of X_s,      variance = sum over them of (1 - 1/n) X_s^2

Totals themselves are too large in the mean of their squares, by just that variance.
"""

from __future__ import annotations

import math

import numpy as np


def visit_variances(
    samples: np.ndarray, values: np.ndarray, weights: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """What each visit adds to the variance of its sample's total.

    Args:
        samples: (N,) a number a sample, the same for visits of one sample.
        values: (N,) times the step's weight.
        weights: (N,) how many steps the step stands for.
        steps: (N,) which one it is; a sample's visits of one step come or stay away together.
    """
    if not len(values):
        return values
    pairs = (steps - steps.min()) * (samples.max() + 1) + samples
    _, inverse = np.unique(pairs, return_inverse=True)
    together = np.bincount(inverse, values)[inverse]
    variances: np.ndarray = (1 - 1 / weights) * values * together
    return variances


def relative_error(totals: np.ndarray, variances: np.ndarray) -> float:
    """The standard error of totals over their true size, both root mean squares.

    Infinite where sampling leaves nothing to tell the size by; 0 where there is no doubt.

    Example:
        >>> import numpy as np
        >>> relative_error(np.array([10.0, 10.0]), np.array([90.0, 90.0]))  # one visit of ten each
        3.0
    """
    doubt = float(np.sum(variances))
    size = float(np.square(totals).sum()) - doubt
    if doubt <= 0:
        return 0.0
    return math.sqrt(doubt / size) if size > 0 else math.inf
