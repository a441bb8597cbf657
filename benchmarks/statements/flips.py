"""How many labels are wrong: one training with planted flips, its count beside the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import inrun
from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import EPOCHS, Digits, Seen, attributed, digits
from inrun.uses import doubts
from inrun.uses._wrong_labels import SEPARATED, counted

KINDS = ("uniform", "confused")
BINS = (0.0, 0.1, 0.5, 0.9, 1.01)


@dataclass(frozen=True)
class Setting(Keyed):
    """How labels are wrong and flips planted, the data, the share of wrong ones, and the draw."""

    flips: str
    shares: str
    noise: float
    data: int


def measure(key: str) -> dict[str, Any]:
    """By the visits that are looked at: the count, what it is, and what probabilities came to."""
    setting = Setting.of(key)
    data = digits(setting.shares, 0.0, setting.data)
    # not the stream that inrun.plant draws rows from: the same rows would be wrong and planted
    rng, truth = np.random.default_rng([setting.data, 1]), data.truth.numpy()
    alike = _alike(data) if setting.flips == "confused" else None
    given = truth.copy()
    for row in rng.permutation(len(truth))[: round(setting.noise * len(truth))]:
        own = int(truth[row])
        others = [k for k in range(data.classes) if k != own] if alike is None else alike[own]
        given[row] = others[int(rng.integers(len(others)))]
    planted = inrun.plant(given.tolist(), instead=alike, seed=setting.data)
    seen = attributed(replace(data, labels=torch.tensor(planted.labels)), setting.data, 1)
    is_planted = np.isin(np.arange(len(truth)), planted.places)
    labels, wrong = np.array(planted.labels), (given != truth)[~is_planted]
    return {str(n): _counted(seen, labels, is_planted, wrong, n) for n in (4, 8, EPOCHS)}


def _counted(
    seen: Seen, labels: np.ndarray, is_planted: np.ndarray, wrong: np.ndarray, visits: int
) -> dict[str, Any]:
    values, steps = seen.values[0][:, :visits], seen.steps[:, :visits]
    harm = np.zeros((len(labels), values.shape[2]))
    for step in np.unique(steps):
        rows = np.nonzero(steps == step)
        size = np.abs(values[rows]).mean()
        np.add.at(harm, rows[0], values[rows] / size if size else 0.0)
    losses = seen.losses[:, :visits].mean(1)
    doubt = doubts(harm, labels, losses, seen.probabilities[:, :visits].mean(1)).doubt
    return told(doubt, is_planted, wrong, visits)


def told(
    doubt: np.ndarray, is_planted: np.ndarray, wrong: np.ndarray, visits: int
) -> dict[str, Any]:
    """What is stated by doubts, beside what is `wrong` among the rows that were not planted."""
    found = counted(doubt, is_planted)
    place = np.digitize(found.probability, BINS) - 1
    return {
        "wrong": int(wrong.sum()),
        "count": found.wrong,
        "low": found.low,
        "high": found.high,
        "separation": found.separation,
        "told": visits >= 8 and found.separation >= SEPARATED,
        "auc": float(roc_auc_score(wrong, doubt[~is_planted])) if wrong.any() else None,
        "rows": np.bincount(place, minlength=4).tolist(),
        "said": np.bincount(place, found.probability, 4).tolist(),
        "came": np.bincount(place, wrong, 4).tolist(),
    }


def _alike(data: Digits) -> dict[int, list[int]]:
    """By class, the two whose mean image is nearest."""
    x, y = data.images.numpy(), data.truth.numpy()
    means = np.stack([x[y == k].mean(0) for k in range(data.classes)])
    far = ((means[:, None] - means[None]) ** 2).sum(2)
    return {k: [int(c) for c in np.argsort(far[k])[1:3]] for k in range(data.classes)}
