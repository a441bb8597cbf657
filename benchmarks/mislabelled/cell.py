"""One cell: a split with wrong labels, every detector's ranking and every suggested label."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks.classification.evidence import Evidence, gather, trained
from benchmarks.classification.tasks import Split, split
from benchmarks.keyed import Keyed
from benchmarks.pruning.rankings import summed
from inrun.uses import class_harm, doubts, harm_sums

FOLDS = 5
OURS = "label doubts"


@dataclass(frozen=True)
class Setting(Keyed):
    """A data set, the share of wrong labels in its training part, and a seed for everything."""

    task: str
    noise: float
    seed: int


def measure(key: str) -> dict[str, Any]:
    """AUC, precision and average precision by detector; accuracy of suggested labels."""
    setting = Setting.of(key)
    data = split(setting.task, setting.noise, setting.seed)
    evidence = gather(data, setting.seed, {"path": True})
    began = time.perf_counter()
    held_out = cross_validated(data, setting.seed)
    seconds = evidence.seconds | {"cross-validation": time.perf_counter() - began}
    scores, suggestions = judged(data, evidence, held_out)
    wrong, truth = data.wrong.numpy(), data.truth.numpy()
    return {
        "found": {name: _quality(score, wrong) for name, score in scores.items()},
        "suggested": {
            name: round(float((k == truth)[wrong].mean()), 5) for name, k in suggestions.items()
        },
        "wrong": int(wrong.sum()),
        "rows": len(wrong),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
    }


def judged(
    data: Split, evidence: Evidence, held_out: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores (N,), high for a wrong label, and suggested classes (N,), by name."""
    labels, p = data.labels.numpy(), evidence.probabilities
    rows, targets = np.arange(len(labels)), tuple(data.targets)
    harm = class_harm(harm_sums(evidence.visits["path"], targets)[1], targets, data.names)
    loss, margin = evidence.losses.mean(1), -evidence.margins.mean(1)
    ours = doubts(harm, labels, loss, p)
    scores = {
        OURS: ours.doubt,
        "mean loss": loss,
        "margin (AUM)": margin,
        "cleanlab, self-confidence": -get_label_quality_scores(labels, held_out),
        "cleanlab, normalized margin": -get_label_quality_scores(
            labels, held_out, method="normalized_margin"
        ),
        "mean loss + margin": rankdata(loss) + rankdata(margin),
        "path, harm": -harm.min(1),
        "path, harm over all classes": -np.minimum(harm, 0).sum(1),
        "path, total": -summed(evidence.visits["path"], "value"),
        "path, normalised": -summed(evidence.visits["path"], "value_normalised"),
    }
    suggestions = {
        OURS: ours.suggested,
        "path, harm": harm.argmin(1),
        "cleanlab (held-out probability)": held_out.argmax(1),
        "training-time probability": p.argmax(1),
        "training-time probability, but not the label": _without(p, rows, labels).argmax(1),
    }
    return scores, suggestions


def cross_validated(data: Split, seed: int) -> np.ndarray:
    """Probabilities (N, K) of each row by a model that was not trained on it."""
    labels = data.labels.numpy()
    found = np.zeros((len(labels), len(data.names)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for kept, left in folds.split(labels, labels):
        model = trained(data, torch.as_tensor(kept), 2000 + seed).eval()
        with torch.no_grad():
            logits = model(*data.fetch(left)[0])
        found[left] = logits.double().softmax(1).numpy()
    return found


def _without(p: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = p.copy()
    others[rows, labels] = -1
    return others


def _quality(score: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    first = np.argsort(-score, kind="stable")[: wrong.sum()]
    return {
        "auc": round(float(roc_auc_score(wrong, score)), 5),
        "precision": round(float(wrong[first].mean()), 5),
        "average_precision": round(float(average_precision_score(wrong, score)), 5),
    }
