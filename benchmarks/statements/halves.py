"""Will a ranking hold with other validation rows: halves of one set beside another set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import Seen, attributed, digits, inside, visits_table
from inrun.uses import agreements, rank

TRAININGS, VISITS, RANKINGS = 2, (2, 4, 8, 16), ("normalised", "total")


@dataclass(frozen=True)
class Setting(Keyed):
    """The classes' shares, the share of wrong labels, and the draw of the data."""

    halves: str
    noise: float
    data: int


def measure(key: str) -> dict[str, Any]:
    """By visits and ranking, of each training and set: R of its halves, and R with the other set.

    Judged by training shares; over all rows, and within labels.
    """
    setting = Setting.of(key)
    data = digits(setting.halves, setting.noise, setting.data)
    labels = data.labels.numpy()
    weights = np.bincount(labels, minlength=data.classes) / len(labels)
    found: dict[str, Any] = {str(n): {name: [] for name in RANKINGS} for n in VISITS}
    for number in range(TRAININGS):
        seen = attributed(data, 100 * setting.data + number)
        for visits in VISITS:
            for name, rows in _told(seen, labels, weights, visits).items():
                found[str(visits)][name] += rows
    return found


def _told(
    seen: Seen, labels: np.ndarray, weights: np.ndarray, visits: int
) -> dict[str, list[dict[str, float | None]]]:
    names, steps = [str(k) for k in range(len(weights))], seen.steps[:, :visits]
    rng, tables, stated = np.random.default_rng(0), [], []
    for halves in seen.halves[:, :, :, :visits]:  # a set's, (2, N, visits, K), of equal weight
        first = np.where(rng.random(len(weights)) < 0.5, halves[0], halves[1]) / 2
        tables.append(visits_table(halves.mean(0), steps, weights, first @ weights))
        rows = agreements(tables[-1], names, labels.astype(str).tolist()).table.to_pylist()
        stated.append({row["ranking"]: row for row in rows})
    found = {}
    for name in RANKINGS:
        a, b = (rank(table, names, name).scores for table in tables)
        real = {"other": float(np.corrcoef(a, b)[0, 1]), "other within": inside(a, b, labels)}
        found[name] = [
            {
                "halves": one[name]["validation_halves"],
                "halves within": one[name]["halves_within_labels"],
            }
            | real
            for one in stated
        ]
    return found
