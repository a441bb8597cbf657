"""Orders of samples, the most harmful first, and how sure a place in them is.

A ranking gives every visit a number whose sum over a sample's visits is its score, low for harm:

    total        the values themselves, which add up to the books and favour early steps
    normalised   each step's values over their mean size
    harm         the normalised values for the one target that the sample harmed most
    gradient     the values over the size of the sample's own gradient in that step, in units of the
                 step's mean: a sample is not high for being large alone. Of runs that keep sizes,
                 `inrun.Options(gradient_sizes=True)`

The confidence that a sample is harmful asks, for every ranking alike, whether the normalised values
of its visits could have a mean of 0. Visits of one training are not independent draws: neighbours
share the weights that they meet. So a sample's visits, in the order of steps, are halved into an
early and a late half; with a, b the halves' means, m = (a + b) / 2 and s = (a - b)^2 / 2,

    t = m / sqrt(v / 2),     v = (PRIOR * mean of s over samples + s) / (PRIOR + 1)

is compared with Student's t of PRIOR + 1 degrees of freedom (moderated t, Smyth 2004). Below
`FEWEST` visits two halves say too little, and there is no confidence. Nearly every sample harms
some one target a little, so harm to one target alone makes no sample harmful.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy

from inrun.errors import MisuseError, require_one_of
from inrun.ledger import GRADIENT_SIZE, normalised_by_step
from inrun.uses._harm import harm_sums
from inrun.uses._samples import visited

PRIOR = 4.0
FEWEST = 8  # visits, below which there is no confidence


@dataclass(frozen=True)
class Ranked:
    """`ids` (n,) in their order, `scores` and `confidence` (n,), `worst` target's number or None.

    Confidence is NaN of samples with fewer than `FEWEST` visits.
    """

    ids: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    worst: np.ndarray | None = None


def _by_column(column: str) -> Callable[[pa.Table, Sequence[str]], Ranked]:
    def ranked(visits: pa.Table, targets: Sequence[str]) -> Ranked:
        ids, row = visited(visits)
        return Ranked(ids, np.bincount(row, visits[column], len(ids)), _confidence(visits, row))

    return ranked


def _by_harm(visits: pa.Table, targets: Sequence[str]) -> Ranked:
    ids, sums = harm_sums(visits, targets)
    worst = sums.argmin(1)
    row = visited(visits)[1]
    return Ranked(ids, sums[np.arange(len(ids)), worst], _confidence(visits, row), worst)


def _by_gradient(visits: pa.Table, targets: Sequence[str]) -> Ranked:
    if GRADIENT_SIZE not in visits.column_names:
        raise MisuseError(
            "The run did not keep the sizes of its samples' gradients, which by='gradient' divides "
            "by. Train with options=inrun.Options(gradient_sizes=True), or `inrun train "
            "--gradient-sizes`."
        )
    ids, row = visited(visits)
    value, size = visits["value"].to_numpy(), visits[GRADIENT_SIZE].to_numpy()
    x = np.divide(value, size, out=np.zeros_like(value), where=size > 0)
    x = normalised_by_step(x, visits["step"].to_numpy())
    if "weight" in visits.column_names:  # of a step that stands for several
        x = x * visits["weight"].to_numpy()
    return Ranked(ids, np.bincount(row, x, len(ids)), _confidence(visits, row))


RANKINGS: dict[str, Callable[[pa.Table, Sequence[str]], Ranked]] = {
    "gradient": _by_gradient,
    "harm": _by_harm,
    "normalised": _by_column("value_normalised"),
    "total": _by_column("value"),
}


def ranking_named(name: str | None, targets: Sequence[str]) -> str:
    """The ranking's name; None is `harm` where there are several targets, else `normalised`."""
    if name is None:
        return "harm" if len(targets) > 1 else "normalised"
    require_one_of("by", name, RANKINGS)
    return name


def visit_places(row: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Each visit's place among its sample's, from 0, and how many visits each sample has.

    `row` is each visit's sample, 0 to samples - 1, in the order of steps.
    """
    n = np.bincount(row, minlength=samples)
    order = np.argsort(row, kind="stable")
    place = np.empty(len(row), dtype=np.int64)
    place[order] = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
    return place, n


def half_means(x: np.ndarray, row: np.ndarray, samples: int) -> np.ndarray:
    """Means of x over the early and the late half of each sample's visits, (samples, 2).

    NaN for samples with fewer than `FEWEST` visits; see `visit_places`.
    """
    place, n = visit_places(row, samples)
    late, enough = 2 * place >= n[row], n[row] >= FEWEST
    return np.stack([means_over(x, row, enough & (late == half), samples) for half in (0, 1)], 1)


def means_over(x: np.ndarray, row: np.ndarray, chosen: np.ndarray, samples: int) -> np.ndarray:
    """(samples,) mean of x over the chosen visits; NaN where none is."""
    count = np.bincount(row[chosen], minlength=samples)
    sums = np.bincount(row[chosen], x[chosen], samples)
    means: np.ndarray = np.divide(sums, count, out=np.full(samples, np.nan), where=count > 0)
    return means


def confidence(x: np.ndarray, row: np.ndarray, samples: int) -> np.ndarray:
    """Confidence that each sample's mean of x over its visits is below 0, (samples,)."""
    mean, variance = _mean_and_variance(half_means(x, row, samples))
    sure: np.ndarray = scipy.stats.t.sf(mean / np.sqrt(variance / 2), PRIOR + 1)
    return sure


def _mean_and_variance(halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, m and v; NaN where the halves are."""
    known = np.isfinite(halves[:, 0])
    squares = (halves[:, 0] - halves[:, 1]) ** 2 / 2
    pooled = squares[known].mean() if known.any() else np.nan
    variance = (PRIOR * pooled + squares) / (PRIOR + 1)
    return halves.mean(1), np.maximum(variance, np.finfo(float).tiny)


def _confidence(visits: pa.Table, row: np.ndarray) -> np.ndarray:
    return confidence(visits["value_normalised"].to_numpy(), row, int(row.max()) + 1)


def rank(visits: pa.Table, targets: Sequence[str], by: str | None = None) -> Ranked:
    """Scores and confidence of every visited sample, by a ranking of `ranking_named`.

    Raises:
        MisuseError: no such ranking, or the run did not keep what it is made of.
    """
    return RANKINGS[ranking_named(by, targets)](visits, targets)
