"""One draw of the data, trained on six times: what each states, and what the others show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import CLASSES, Digits, Seen, attributed, digits
from inrun.ledger import normalised
from inrun.uses._ranking import PRIOR, confidence

TRAININGS, SURE, DROPPED = 6, 0.95, 30


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
    shares = np.bincount(labels, minlength=CLASSES) / len(labels)
    found: dict[str, Any] = {}
    for judge, weights in (("even", np.full(CLASSES, 1 / CLASSES)), ("training", shares)):
        totals = [one.values.sum(2) @ weights for one in seen]  # (2, N) each
        largest = labels == shares.argmax()
        found[judge] = {
            "auc": [float(roc_auc_score(wrong, -a[0])) for a in totals] if wrong.any() else [],
            "largest class harmful": [float((a[0][largest] < 0).mean()) for a in totals],
            "other validation set": [float(np.corrcoef(a)[0, 1]) for a in totals],
            "visits": {str(n): _claims(seen, weights, n) for n in (8, 16)},
        }
    return found


def _claims(seen: Sequence[Seen], weights: np.ndarray, visits: int) -> dict[str, Any]:
    """Confidence and expected positives of each training, from its first so many visits."""
    x = [_normalised(s.values[0][:, :visits] @ weights, s.steps[:, :visits]) for s in seen]
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


def _normalised(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    found = np.zeros_like(values)
    for step in np.unique(steps):
        found[steps == step] = normalised(values[steps == step])
    return found
