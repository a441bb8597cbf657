"""Orders of samples, the most harmful first, and how sure a place in them is.

A ranking gives every visit a number whose sum over a sample's visits is its score, low for harm:

    total        the values themselves, which add up to the books and favour early steps
    normalised   each step's values over their mean size
    harm         the normalised values for the one target that the sample harmed most

The confidence that a sample is harmful asks, for every ranking alike, whether the normalised values
x_1..x_n of its visits could have a mean of 0: a one-sided t test, whose variance is drawn towards
that of all samples as if by `PRIOR` more visits (moderated t, Smyth 2004), because a sample is
visited a few times only. Nearly every sample harms some one target a little, so harm to one target
alone makes no sample harmful. Visits of one training are not independent draws: the confidence is a
guide, and retraining is the check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import t as student

from inrun.errors import MisuseError
from inrun.uses._labels import harm_sums

PRIOR = 4.0


@dataclass(frozen=True)
class Ranked:
    """`ids` (n,) in their order, `scores` and `confidence` (n,), `worst` target's number or None.

    Confidence is NaN where no sample has a second visit to judge by.
    """

    ids: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    worst: np.ndarray | None = None


def _by_column(column: str) -> Callable[[pa.Table, Sequence[str]], Ranked]:
    def ranked(visits: pa.Table, targets: Sequence[str]) -> Ranked:
        ids, row = _rows(visits)
        return Ranked(ids, np.bincount(row, visits[column], len(ids)), _confidence(visits, row))

    return ranked


def _by_harm(visits: pa.Table, targets: Sequence[str]) -> Ranked:
    ids, sums = harm_sums(visits, targets)
    worst = sums.argmin(1)
    row = _rows(visits)[1]
    return Ranked(ids, sums[np.arange(len(ids)), worst], _confidence(visits, row), worst)


RANKINGS: dict[str, Callable[[pa.Table, Sequence[str]], Ranked]] = {
    "harm": _by_harm,
    "normalised": _by_column("value_normalised"),
    "total": _by_column("value"),
}


def ranking_named(name: str | None, targets: Sequence[str]) -> str:
    """The ranking's name; None is `harm` where there are several targets, else `normalised`."""
    if name is None:
        return "harm" if len(targets) > 1 else "normalised"
    if name not in RANKINGS:
        raise MisuseError(f"by {name!r} is not one of {', '.join(RANKINGS)}.")
    return name


def confidence(x: np.ndarray, row: np.ndarray, samples: int) -> np.ndarray:
    """Confidence that each sample's mean over its visits is below 0, (samples,).

    Args:
        x: a number a visit.
        row: each visit's sample, 0 to samples - 1; every sample has a visit.
        samples: how many.
    """
    n = np.bincount(row, minlength=samples)
    mean = np.bincount(row, x, samples) / n
    squares = np.bincount(row, (x - mean[row]) ** 2, samples)
    freedom = n - 1
    if not freedom.sum():
        return np.full(samples, np.nan)
    pooled = squares.sum() / freedom.sum()
    variance = (PRIOR * pooled + squares) / (PRIOR + freedom)
    error = np.sqrt(np.maximum(variance, np.finfo(float).tiny) / n)
    sure: np.ndarray = student.sf(mean / error, PRIOR + freedom)
    return sure


def _confidence(visits: pa.Table, row: np.ndarray) -> np.ndarray:
    return confidence(visits["value_normalised"].to_numpy(), row, int(row.max()) + 1)


def _rows(visits: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    ids = visits["sample_id"].to_numpy(zero_copy_only=False)
    known, row = np.unique(ids, return_inverse=True)
    return known, row


def rank(visits: pa.Table, targets: Sequence[str], by: str | None = None) -> Ranked:
    """Scores and confidence of every visited sample.

    Args:
        visits: see `Run.visits`.
        targets: the utility's targets.
        by: 'harm', 'normalised' or 'total'; None as in `ranking_named`.

    Raises:
        MisuseError: no such ranking.
    """
    return RANKINGS[ranking_named(by, targets)](visits, targets)
