"""What the same difference, measured in several trainings, lets one say.

Letters: n trainings (seeds), m their mean, s their standard deviation (over n - 1), t_p a quantile
of Student's t of n - 1 degrees of freedom.

    fixed number of trainings    m +- t_.975 s / sqrt(n)
    a look after each            m +- s sqrt((n - 1) q / n),   q = (r - 1) / (1 - r / k),
                                 k = 1 + n EFFECT^2,           r = (sqrt(k) / 0.05)^(2 / n)
    the next training            m +- t_.975 s sqrt(1 + 1 / n)
    smallest gain to be seen     d s / sqrt(n), with d the noncentrality at which T is above
                                 half the interval / (s / sqrt(n)) with probability 0.8

The second holds at all n at once with 95 %, so that one may look, and stop, whenever one likes. It
is a mixture of likelihood ratios: with the mean over s drawn from N(0, EFFECT^2) and the scale from
its right Haar measure, the ratio of the marginal likelihoods against a mean of 0 is

    k^(-1/2) ((1 + y) / (1 + y / k))^(n / 2),   y = T^2 / (n - 1),   T = sqrt(n) m / s,

a martingale of the sequence of T where the mean is 0; by Ville's inequality it ever reaches 20 with
probability 0.05 at most. It is below 20 exactly where y < q, and wherever r >= k, as it is of few
trainings. The idea is Lai's (1976, Ann. Statist. 4, 265), with e-values Wang and Ramdas's (2025,
Statist. Sinica). Differences are taken to be normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

EFFECT = 2.0  # in standard deviations: gains for which looking early is made sharpest
ERROR, POWER = 0.05, 0.8


class Mean(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The mean with its interval, each number by the specification."""
        mean, low, high = (format(value, spec) for value in self)
        return f"{mean} [{low}, {high}]"


def half_interval(x: np.ndarray) -> float:
    """Half of Student's 95 % interval of the mean; NaN for one number."""
    if len(x) < 2:
        return math.nan
    return float(scipy.stats.t.ppf(1 - ERROR / 2, len(x) - 1)) * _error(x)


def half_at_every_look(x: np.ndarray) -> float:
    """Half of an interval that covers the mean after every number so far and to come, with 95 %.

    Infinite of the first few numbers, which say too little for that.
    """
    n = len(x)
    k = 1 + n * EFFECT**2
    r = (math.sqrt(k) / ERROR) ** (2 / n)
    if n < 2 or r >= k:
        return math.inf
    return math.sqrt((n - 1) * (r - 1) / (1 - r / k)) * _error(x)


def mean_of(numbers: Sequence[float], *, looked: bool = False) -> Mean:
    """The mean and its interval: Student's, or one that allows a look after each number."""
    array = np.asarray(numbers, dtype=np.float64)
    return _around(array, (half_at_every_look if looked else half_interval)(array))


def next_of(numbers: Sequence[float]) -> Mean:
    """The mean, and where one further number is expected with 95 %."""
    array = np.asarray(numbers, dtype=np.float64)
    return _around(array, half_interval(array) * math.sqrt(len(array) + 1))


def smallest_seen(numbers: Sequence[float], *, looked: bool = False) -> float:
    """The gain whose interval lies above 0 with a probability of 80 %, at this number and spread.

    The spread is estimated from the same few numbers, so this is an estimate too.
    """
    array = np.asarray(numbers, dtype=np.float64)
    n, error = len(array), _error(array)
    half = (half_at_every_look if looked else half_interval)(array)
    if error == 0 or not math.isfinite(half):
        return half
    least = half / error  # of T

    def short(effect: float) -> float:
        return float(scipy.stats.nct.sf(least, n - 1, effect)) - POWER

    unbiased = 1 + 1 / (4 * n - 4)  # s is too small in the mean, nearly by this
    return unbiased * error * float(scipy.optimize.brentq(short, 0.0, 2 * least + 4))


def _around(array: np.ndarray, half: float) -> Mean:
    mean = float(array.mean())
    return Mean(mean, mean - half, mean + half)


def _error(x: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(x.std(ddof=1) / math.sqrt(len(x)))
