"""One draw of the data, trained on six times: what each states, and what the others show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import (
    TRAINING,
    Digits,
    Seen,
    attributed,
    digits,
    inside,
    normalised_by_visit,
    visits_table,
)
from inrun.uses import agreements, rank
from inrun.uses._groups import intervals as intervals_of
from inrun.uses._ranking import PRIOR, confidence

TRAININGS, SURE, DROPPED = 6, 0.95, 30
SOURCES, ASSIGNMENTS = 10, 50


@dataclass(frozen=True)
class Setting(Keyed):
    """The classes' shares, the share of wrong labels, and the draw of the data."""

    shares: str
    noise: float
    data: int


def measure(key: str) -> dict[str, Any]:
    """By how classes are weighed: what is stated, and what it comes to."""
    setting = Setting.of(key)
    data = digits(setting.shares, setting.noise, setting.data)
    return judged(data, [attributed(data, 100 * setting.data + s) for s in range(TRAININGS)])


def judged(data: Digits, seen: Sequence[Seen]) -> dict[str, Any]:
    """Of trainings on the same data, each beside the others."""
    labels, wrong = data.labels.numpy(), (data.labels != data.truth).numpy()
    shares = np.bincount(labels, minlength=data.classes) / len(labels)
    found: dict[str, Any] = {}
    for judge, weights in (("even", np.full(len(shares), 1 / len(shares))), ("training", shares)):
        totals = [one.values.sum(2) @ weights for one in seen]  # (2, N) each
        largest = labels == shares.argmax()
        found[judge] = {
            "auc": [float(roc_auc_score(wrong, -a[0])) for a in totals] if wrong.any() else [],
            "largest class harmful": [float((a[0][largest] < 0).mean()) for a in totals],
            "other validation set": [float(np.corrcoef(a)[0, 1]) for a in totals],
            "visits": {str(n): _claims(seen, weights, n) for n in (8, 16)},
        }
    found["training"]["agreements"] = {
        str(n): _agreements(seen, labels, shares, n) for n in (2, 4, 8, 16)
    }
    found["training"]["sources"] = [_sources(one, shares, k) for k, one in enumerate(seen)]
    return found


def _agreements(
    seen: Sequence[Seen], labels: np.ndarray, weights: np.ndarray, visits: int
) -> dict[str, dict[str, float]]:
    """By ranking: R as it is stated of one training, and R of two trainings; means."""
    tables = [
        visits_table(one.values[0][:, :visits], one.steps[:, :visits], weights) for one in seen
    ]
    names, rows = [str(k) for k in range(len(weights))], {}
    stated = [agreements(table, names, labels.astype(str).tolist()).table for table in tables]
    for place, ranking in enumerate(stated[0]["ranking"].to_pylist()):
        scores = [_scores(table, ranking, names) for table in tables]
        pairs = [(a, b) for a, b in combinations(scores, 2)]
        rows[ranking] = {
            "stated": _mean_of(t["another_training"][place].as_py() for t in stated),
            "another training": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])),
            "stated within": _mean_of(t["within_labels"][place].as_py() for t in stated),
            "within": float(np.mean([inside(a, b, labels) for a, b in pairs])),
            "between labels": _mean_of(t["between_labels"][place].as_py() for t in stated),
        }
    return rows


def _scores(table: pa.Table, ranking: str, names: Sequence[str]) -> np.ndarray:
    return rank(table, names, ranking).scores


def _mean_of(numbers: Iterable[float | None]) -> float:
    known = [x for x in numbers if x is not None]
    return float(np.mean(known)) if known else float("nan")


def _sources(one: Seen, weights: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Equal sources of rows drawn with replacement: how often intervals hold, and one is named."""
    value, found = one.values[0].sum(1) @ weights, {}
    for name, near in (("single rows", False), ("near copies, drawn together", True),
                       ("near copies, as if single", True)):  # fmt: skip
        rng, told = np.random.default_rng(seed), []
        for _ in range(ASSIGNMENTS):
            contents = 60 if near else TRAINING
            size = rng.integers(1, 10, contents) if near else np.ones(contents, dtype=int)
            cluster = np.repeat(np.arange(contents), size)
            drawn = rng.choice(value, contents)[cluster]
            drawn = drawn + 0.1 * value.std() * rng.standard_normal(len(drawn)) * near
            group = (rng.permutation(contents) % SOURCES)[cluster]
            if name.endswith("single"):
                cluster = np.arange(len(drawn))
            intervals = intervals_of(drawn, group, SOURCES, cluster)
            n = np.bincount(group)
            for x, m in zip(intervals, n, strict=True):
                x["held"] = x["low"] <= m * value.mean() <= x["high"]
                x["share held"] = x["share_low"] <= m / n.sum() <= x["share_high"]
            every = [all(x[name] for x in intervals) for name in ("held", "share held")]
            told.append((*every, any(x["told"] for x in intervals)))
        held = np.mean(told, 0).tolist()
        found[name] = dict(zip(("values hold", "shares hold", "one is named"), held, strict=True))
    return found


def _claims(seen: Sequence[Seen], weights: np.ndarray, visits: int) -> dict[str, Any]:
    """Confidence and expected positives of each training, from its first so many visits."""
    x = [normalised_by_visit(s.values[0][:, :visits] @ weights, s.steps[:, :visits]) for s in seen]
    means = np.stack([part.mean(1) for part in x])
    n = len(means[0])
    row = np.repeat(np.arange(n), visits)
    told: dict[str, list[float]] = {"stated": [], "mean of others": [], "next": []}
    expected, came = [], []
    for k, part in enumerate(x):
        others = np.delete(means, k, 0)
        sure = confidence(part.ravel(), row, n)
        claimed = sure >= SURE
        told["stated"].append(float(sure[claimed].sum()))
        told["mean of others"].append(float((others.mean(0)[claimed] < 0).sum()))
        told["next"].append(float((others[:, claimed] < 0).mean(0).sum()))
        drop = np.argsort(means[k])[:DROPPED]
        again = student.cdf(student.isf(sure[drop], PRIOR + 1) / np.sqrt(2), PRIOR + 1)
        expected.append(float(again.sum()))
        came.append(float((others[:, drop] > 0).mean(0).sum()))
        told.setdefault("claims", []).append(float(claimed.sum()))
    return {**told, "expected positive": expected, "positive again": came}
