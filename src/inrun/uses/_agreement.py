"""Will the ranking hold: with another training of the same data, and with other validation rows.

Visits of one training are its only repetitions. Of every sample, the mean over its odd visits is
put beside that over its even ones, and R is their correlation over samples. Each mean has half of
the visits, so that R is too low; visits of one training share its start and its weights, so that it
is too high. `python -m benchmarks.statements` compares R, left as it is, with trainings made again:
from eight visits on it is at or below them, but for the harm profile, whose most harmed target is
chosen by both halves alike. For that the early half of the visits is put beside the late one, from
`FEWEST` visits on.

Values are linear in the validation loss. Where a run has the target `HALF`, of half of the
validation rows, the rest of the total is that of the other half: scores by either are what two runs
would give that are judged by these rows alone. Their R is left as it is, of half as many rows.

Samples of one label are alike, and a ranking may agree because labels do. So R within labels is
given too, of what is left once each label's mean is taken off, and between labels lies

    1 - variance of what is left / variance of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import StoreError
from inrun.ledger import Run, normalised_by_step
from inrun.truth import noise_ceiling
from inrun.uses._harm import harm_sums
from inrun.uses._ranking import FEWEST, means_over, visit_places
from inrun.uses._samples import Valued, described, samples_of, visited
from inrun.utility import HALF

SCHEMA = pa.schema(
    [
        ("ranking", pa.string()),
        ("another_training", pa.float64()),
        ("within_labels", pa.float64()),
        ("between_labels", pa.float64()),
        ("validation_halves", pa.float64()),
        ("halves_within_labels", pa.float64()),
    ]
)
COLUMNS = {"normalised": "value_normalised", "total": "value"}
NAMES = {"normalised": "normalised values", "total": "totals"}


@dataclass(frozen=True, repr=False)
class Agreement(Answer):
    """What `inrun.agreement` returns.

    Attributes:
        table: one row per ranking (`normalised`, the most reliable one at any number of visits that
            was measured, `total`, with several targets `harm`):
            `another_training`, the correlation R to expect at least; `within_labels`, the same
            without what lies between labels; `between_labels`, the share of the scores' variance
            that lies there; `validation_halves`, R of the scores by one half of the validation rows
            with those by the other, and `halves_within_labels`. Null where the run cannot tell.
        visits: median number of visits of a sample.
        another_validation: R of a step's values with those by another validation set of as many
            rows, from the run's audit; None where it has none.
    """

    table: pa.Table
    visits: float
    another_validation: float | None = None

    def sentences(self) -> list[str]:
        """Both agreements."""
        first = self.table.slice(0, 1).to_pylist()[0]
        r, within, between = (first[n] for n in self.table.column_names[1:4])
        if r is None:
            said = [
                "With another training: not known, since most samples were visited once. Rankings "
                "by single visits differed much wherever they were compared."
            ]
        else:
            inside = "" if within is None else f", within a label {within:.2f}"
            size = f"{r:.2f} or more" if self.visits >= FEWEST else f"about {r:.2f}"
            said = [
                f"With another training: of normalised values expect R {size} over all "
                f"samples{inside} (odd visits against even ones; {self.visits:.0f} of each sample)."
            ]
        if between is not None:
            said.append(f"{between:.0%} of the variance of normalised values lies between labels.")
        return said + self._validation()

    def _validation(self) -> list[str]:
        said = []
        rows = {row["ranking"]: row for row in self.table.to_pylist()}
        known = [name for name in COLUMNS if rows[name]["validation_halves"] is not None]
        if known:
            each = []
            for name in known:
                inside = rows[name]["halves_within_labels"]
                within = "" if inside is None else f", within a label {inside:.2f}"
                each.append(f"of {NAMES[name]} R is {rows[name]['validation_halves']:.2f}{within}")
            said.append(
                "With other validation rows: one half of them against the other half, "
                f"{'; '.join(each)}. It is one division of the rows, and of half as many."
            )
        if self.another_validation is not None:
            said.append(
                "With another validation set of as many rows: R "
                f"{self.another_validation:.2f} in a step (audit, halves of the validation rows)."
            )
        return said or [
            "With another validation set: not known; an audit measures it, by halves of its rows."
        ]


def agreement(run: Valued, samples: pa.Table | None = None) -> Agreement:
    """How far another training, or other validation rows, would rank the samples alike.

    Args:
        run: a stored run, or a live attribution with a store.
        samples: what the samples are, if the run was not told (`Run.describe`); their `label`
            tells what lies between labels.

    Raises:
        StoreError: the run holds no visits.
    """
    table = samples_of(run, samples)
    labels = None
    if table is not None and "label" in table.column_names:
        labels = [str(name) for name in described(run.values(), table)["label"].to_pylist()]
    return agreements(run.visits(), run.targets, labels, _audited(run))


def agreements(
    visits: pa.Table,
    targets: Sequence[str],
    labels: Sequence[str] | None = None,
    another_validation: float | None = None,
) -> Agreement:
    """The same of a table of visits; `labels` are in the order of ids."""
    ids, row = visited(visits)
    place, n = visit_places(row, len(ids))
    level = None if labels is None else np.unique(labels, return_inverse=True)[1]
    rows = []
    for name, column in COLUMNS.items():
        x = visits[column].to_numpy()
        halves = [means_over(x, row, place % 2 == odd, len(ids)) for odd in (0, 1)]
        rows.append(_row(name, halves, np.bincount(row, x), level))
        rows[-1] |= _validation_halves(visits, name, row, level)
    if len(targets) > 1:
        enough, late = n[row] >= FEWEST, 2 * place >= n[row]
        halves = [_harm(visits.filter(enough & (late == half)), targets, ids) for half in (0, 1)]
        rows.append(_row("harm", halves, harm_sums(visits, targets)[1].min(1), level))
    table = pa.Table.from_pylist(rows, SCHEMA)
    return Agreement(table, float(np.median(n)), another_validation)


def _harm(visits: pa.Table, targets: Sequence[str], ids: np.ndarray) -> np.ndarray:
    """(n,) the harm profile's score; NaN for samples without visits here."""
    found = np.full(len(ids), np.nan)
    if visits.num_rows:
        known, sums = harm_sums(visits, targets)
        found[np.searchsorted(ids, known)] = sums.min(1)
    return found


def _row(
    name: str, halves: Sequence[np.ndarray], scores: np.ndarray, level: np.ndarray | None
) -> dict[str, Any]:
    a, b = halves
    both = np.isfinite(a) & np.isfinite(b)
    row: dict[str, Any] = {"ranking": name, "another_training": None}
    if 2 * both.sum() > len(both):
        row["another_training"] = _correlation(a[both], b[both])
        if level is not None:
            inside = (_within(x[both], level[both]) for x in (a, b))
            row["within_labels"] = _correlation(*inside)
    if level is not None and scores.var() > 0:
        row["between_labels"] = float(1 - _within(scores, level).var() / scores.var())
    return row


def _validation_halves(
    visits: pa.Table, ranking: str, row: np.ndarray, level: np.ndarray | None
) -> dict[str, float | None]:
    """R of the scores by either half of the validation rows, where the run has `HALF`."""
    if HALF not in visits.column_names:
        return {}
    first = visits[HALF].to_numpy()
    if not np.isfinite(first).all():  # of a run that is judged by other weights
        return {}
    parts = [first, visits["value"].to_numpy() - first]
    if ranking == "normalised":
        step = np.unique(visits["step"].to_numpy(), return_inverse=True)[1]
        size = visits["weight"].to_numpy() if "weight" in visits.column_names else 1.0
        parts = [size * normalised_by_step(x / size, step) for x in parts]
    a, b = (np.bincount(row, x) for x in parts)
    found = {"validation_halves": _correlation(a, b)}
    if level is not None:
        found["halves_within_labels"] = _correlation(_within(a, level), _within(b, level))
    return found


def _within(x: np.ndarray, level: np.ndarray) -> np.ndarray:
    """What is left of x once each level's mean is taken off."""
    count = np.maximum(np.bincount(level), 1)
    left: np.ndarray = x - (np.bincount(level, x) / count)[level]
    return left


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or not a.std() > 0 or not b.std() > 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _audited(run: Valued) -> float | None:
    """R with another validation set, of a run that was audited."""
    if not isinstance(run, Run):
        return None
    try:
        found = noise_ceiling(run.audit().to_pylist())
    except StoreError:
        return None
    return None if found is None else found.median
