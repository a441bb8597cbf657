"""How many labels are wrong, by known flips that were planted among them.

A ranking of labels by doubt says where to look, not how many are wrong. So M rows are given another
label on purpose, the model is trained with them, and everything is ranked. With S(t) the share of
the planted flips that are at least as doubtful as t, and F(t) the number of other rows that are,

    W = min over t of F(t) / S(t)

estimates the wrong labels among the other rows, where planted flips are like real ones: right
labels that look doubtful make F too large, least so at the best t, which is the planted flips'
quantile of `QUANTILES`. The interval is a bootstrap's over planted and other rows; below, it is
lowered by `FALSE` of the rows, for right labels that look wrong, and above it is at least 3.7, the
upper end for a count of none.

Where planted flips are not told from right labels, nothing is counted: the model has memorised
them, or has learnt too little. With a the AUC of planted against all other rows and w = W / N,

    separation = (a - w / 2) / (1 - w)

is the AUC of planted flips against right labels, and must be `SEPARATED` or more, a limit set by
trainings on digits. Where right labels' doubts have heavy tails (Student's t of three degrees of
freedom), more than `FALSE` of the right labels look wrong below `CLEAR`: the count is then too
high, and its interval may not reach down to the truth. It cannot be seen from the order of doubts,
so it is said.

A row's probability is that of its place in the order: with r(s) the isotonic share of planted flips
at doubt s, each weighing W / M, p = r / (1 - r), 1 at most. A fit to few flips is steeper than the
truth, so p is the mean over the bootstrap's draws in which the row was not drawn. It is shrunk by
1 - `FALSE` N / W, for right labels that look wrong; where that is 0 or the interval of W reaches 0,
the most doubtful rows may all be right, and no probability is given.
`python -m benchmarks.statements` puts probabilities beside what is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.uses._labels import label_doubts
from inrun.uses._ranking import FEWEST
from inrun.uses._samples import Valued

LEAST, SHARE = 60, 0.1  # rows to plant: at least so many, and this share
QUANTILES, FALSE, SEPARATED, DRAWS = (0.3, 0.5, 0.7), 0.02, 0.94, 400
CLEAR = 0.97  # separation, below which heavy tails make counts too high
FITS = 100  # of these draws, for probabilities: each takes a pass over all rows
NONE_BELOW = 3.7  # the upper end of an exact 95 % interval for a count of which none was seen


class Planted(NamedTuple):
    """`labels` to train with, in the order of the given ones; `places` that were changed."""

    labels: list[Any]
    places: list[int]


def plant(
    labels: Sequence[Any], *, instead: Mapping[Any, Sequence[Any]] | None = None, seed: int = 0
) -> Planted:
    """Gives some rows another label on purpose: 60, or 10 % of them if that is more.

    Args:
        labels: of the training rows.
        instead: by label, those that it may be mistaken for, one of which is drawn; every other
            label alike where not given. Plant what is suspected: counts are right for that.
        seed: of the draw.

    Raises:
        MisuseError: fewer than three times as many rows as flips, or one label.
    """
    names = sorted(set(labels), key=str)
    count = max(LEAST, round(SHARE * len(labels)))
    if len(labels) < 3 * count or len(names) < 2:
        raise MisuseError(
            f"{count} flips in {len(labels)} rows of {len(names)} labels would be another data "
            f"set. Planting needs {3 * count} rows and two labels."
        )
    rng, changed = np.random.default_rng(seed), list(labels)
    places = sorted(rng.permutation(len(labels))[:count].tolist())
    for place in places:
        own = labels[place]
        others = list(names) if instead is None else list(instead.get(own, names))
        others = [name for name in others if name != own] or [n for n in names if n != own]
        changed[place] = others[int(rng.integers(len(others)))]
    return Planted(changed, places)


@dataclass(frozen=True, repr=False)
class WrongLabels(Answer):
    """What `inrun.wrong_labels` returns.

    Attributes:
        table: one row per sample that was not planted, the most doubtful first: `sample_id`,
            `label`, `suggested_label`, `doubt_rank`, and `probability` that the label is wrong,
            null where it cannot be told, or where the count's interval reaches 0.
        count: how many labels are wrong; None where it cannot be told.
        low: lower end of its 95 % interval.
        high: upper end.
        planted: how many flips were planted.
        separation: the AUC of planted flips against right labels.
        visits: median number of visits of a sample.
    """

    table: pa.Table
    count: float | None
    low: float | None
    high: float | None
    planted: int
    separation: float
    visits: float

    def sentences(self) -> list[str]:
        """The count, or why there is none."""
        told = f"{self.planted} planted flips are told from right labels with AUC"
        if self.count is None:
            why = (
                f"samples have {self.visits:.0f} visits, and counting needs {FEWEST}"
                if self.visits < FEWEST
                else f"{told} {self.separation:.2f}, and counting needs {SEPARATED}: the model has "
                "memorised them, or learnt too little"
            )
            return [f"How many labels are wrong cannot be told: {why}."]
        return [
            f"About {self.count:.0f} of {self.table.num_rows:,} labels are wrong (95 % interval "
            f"{self.low:.0f} to {self.high:.0f}), if they are wrong as the planted ones are. "
            f"{told} {self.separation:.2f}."
            + (
                f" Below {CLEAR} the count is too high where more than {FALSE:.0%} of the right "
                "labels look as wrong as these."
                if self.separation < CLEAR
                else ""
            )
        ]


def wrong_labels(run: Valued, planted: Collection[Any], seen: Any = None) -> WrongLabels:
    """How many labels are wrong, and how probably each, of a run with planted flips.

    Args:
        run: a stored run or a live attribution whose training had labels from `inrun.plant`.
        planted: ids of the samples whose labels were changed.
        seen: see `inrun.label_doubts`.

    Raises:
        MisuseError: fewer planted flips than 30 among the run's samples; or see
            `inrun.label_doubts`.
    """
    table = label_doubts(run, seen).table
    known = pa.array(list(planted), type=table["sample_id"].type)
    is_planted = pc.is_in(table["sample_id"], value_set=known).to_numpy()
    if is_planted.sum() < LEAST // 2 or is_planted.all():
        raise MisuseError(
            f"{int(is_planted.sum())} of the planted ids are samples of this run, and {LEAST // 2} "
            f"or more are needed. Pass the ids at Planted.places."
        )
    found = counted(-table["doubt_rank"].to_numpy().astype(float), is_planted)
    visits = np.median(pc.value_counts(run.visits()["sample_id"]).field("counts").to_numpy())
    told = visits >= FEWEST and found.separation >= SEPARATED
    others = table.filter(pa.array(~is_planted))
    probability = pa.array(
        found.probability, mask=np.full(others.num_rows, not told or found.low == 0)
    )
    count, low, high = (found.wrong, found.low, found.high) if told else (None, None, None)
    return WrongLabels(
        others.append_column("probability", probability), count, low, high,
        int(is_planted.sum()), found.separation, float(visits),
    )  # fmt: skip


class Counted(NamedTuple):
    """Of the rows that were not planted: see this file's head; `probability` (N,)."""

    wrong: float
    low: float
    high: float
    separation: float
    probability: np.ndarray


def counted(doubt: np.ndarray, is_planted: np.ndarray) -> Counted:
    """Counts by doubt (N + M,), high for labels that look wrong; `is_planted` likewise, bool."""
    flips, others = doubt[is_planted], doubt[~is_planted]
    m, n, rng = len(flips), len(others), np.random.default_rng(0)
    count = _count(flips, others)
    drawn, sums, left_out = np.empty(DRAWS), np.zeros(n), np.zeros(n)
    for k in range(DRAWS):
        some, chosen = flips[rng.integers(m, size=m)], rng.integers(n, size=n)
        drawn[k] = _count(some, others[chosen])
        if k < FITS:
            rest = np.bincount(chosen, minlength=n) == 0
            left_out += rest
            if drawn[k]:
                sums[rest] += _probability(some, others[chosen], drawn[k], others[rest])
    low, high = np.percentile(drawn, [2.5, 97.5])
    share = count / n
    ranks = scipy.stats.rankdata(doubt)[is_planted].sum()
    auc = (ranks - m * (m + 1) / 2) / (m * n)
    separation = (auc - share / 2) / (1 - share) if share < 0.9 else 0.0
    shrunk = max(0.0, 1 - FALSE * n / count) if count else 0.0
    order = np.argsort(others, kind="stable")
    probability = np.empty(n)  # rows' means are of other draws each: brought into order again
    probability[order] = _increasing((sums / np.maximum(left_out, 1))[order], np.ones(n))
    return Counted(
        count, max(0.0, low - FALSE * n), min(n, max(high, NONE_BELOW)), float(separation),
        shrunk * probability,
    )  # fmt: skip


def _count(flips: np.ndarray, others: np.ndarray) -> float:
    found = [(others >= t).sum() / (flips >= t).mean() for t in np.quantile(flips, QUANTILES)]
    return float(min(len(others), *found))


def _probability(flips: np.ndarray, others: np.ndarray, count: float, at: np.ndarray) -> np.ndarray:
    """Of doubts `at`, by the flips and others drawn; between two of them it is interpolated."""
    doubt = np.concatenate([flips, others])
    order = np.argsort(doubt, kind="stable")
    weights = np.repeat([count / len(flips), 1.0], [len(flips), len(others)])[order]
    share = np.interp(at, doubt[order], _increasing((order < len(flips)).astype(float), weights))
    found: np.ndarray = np.minimum(share / np.maximum(1 - share, 1e-9), 1.0)
    return found


def _increasing(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest numbers that never fall: neighbours that do share their mean."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for mean, weight in zip(y.tolist(), weights.tolist(), strict=True):
        blocks.append((mean, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, v, m), (b, w, n) = blocks[-2:]
            blocks[-2:] = [((a * v + b * w) / (v + w), v + w, m + n)]
    return np.repeat([mean for mean, _, _ in blocks], [n for _, _, n in blocks])
