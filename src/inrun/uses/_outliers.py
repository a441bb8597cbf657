"""Samples whose value is out of all proportion to the others'.

A sum over samples can be the work of a few: one gradient a thousand times longer than the rest
decides what a provider's data was worth. A sample is flagged where the size of its value is more
than `TIMES` times the median sample's.
"""

from __future__ import annotations

import numpy as np

TIMES = 20.0


def outliers(values: np.ndarray) -> np.ndarray:
    """(n,) bool: |value| above `TIMES` times the median of |value| over samples that have one."""
    size = np.abs(values)
    present = size[size > 0]
    if not len(present):
        return np.zeros(len(values), dtype=bool)
    flagged: np.ndarray = size > TIMES * np.median(present)
    return flagged
