"""What the demo's tables say: wrong labels found, labels suggested, what dropping them gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from inrun.demo import _digits as digits
from inrun.demo._experiment import Tick, Trained, retrain
from inrun.uses import doubts, harm_sums

DROPPED_SHARE = 0.2
BEST, LOSS, TOTAL = "label doubts", "mean training loss", "value, total"
BALANCED = "value, total, balanced over labels"


@dataclass(frozen=True)
class Findings:
    """Scores are so oriented that a high one means: this label is wrong, or this sample harms.

    `suggested` (N,) is the label that each sample should rather have.
    """

    scores: dict[str, np.ndarray]
    auc: dict[str, float]
    suggested: np.ndarray
    right_suggestions: float

    @property
    def best_first(self) -> np.ndarray:
        """Samples by label doubts, the most doubtful first."""
        return np.argsort(-self.scores[BEST])


def findings(data: digits.Digits, trained: Trained) -> Findings:
    """Ranks samples by each method and scores the rankings against the known wrong labels."""
    _, harm = harm_sums(trained.visits, tuple(data.targets))
    doubted = doubts(harm, data.labels.numpy(), trained.mean_loss, trained.probabilities)
    scores = {
        BEST: doubted.doubt,
        LOSS: trained.mean_loss,
        "harm profile": -harm.min(1),
        "value, normalised": -trained.values["value_normalised"].to_numpy(),
        TOTAL: -trained.values["value"].to_numpy(),
    }
    wrong = data.wrong.numpy()
    auc = {name: float(roc_auc_score(wrong, score)) for name, score in scores.items()}
    right = float((doubted.suggested == data.truth.numpy())[wrong].mean())
    return Findings(scores, auc, doubted.suggested, right)


def worst(data: digits.Digits, found: Findings) -> dict[str, np.ndarray]:
    """Which samples each way of pruning drops: a fifth of all, or of every label."""
    drop = int(DROPPED_SHARE * digits.TRAINING)
    chosen = {name: np.argsort(-found.scores[name])[:drop] for name in (BEST, LOSS, TOTAL)}
    labels = data.labels.numpy()
    of_each = []
    for label in range(digits.CLASSES):
        rows = np.flatnonzero(labels == label)
        order = np.argsort(-found.scores[TOTAL][rows])
        of_each.append(rows[order[: round(DROPPED_SHARE * len(rows))]])
    chosen[BALANCED] = np.concatenate(of_each)
    return chosen


def retrained(
    data: digits.Digits, found: Findings, seeds: Sequence[int], tick: Tick
) -> dict[str, list[float]]:
    """Test accuracy, one number a seed, with a fifth of the samples dropped in several ways."""
    drop = int(DROPPED_SHARE * digits.TRAINING)
    everything = np.arange(digits.TRAINING)
    keep = {"all samples": everything}
    for name, rows in worst(data, found).items():
        keep[f"without the worst by {name}"] = np.setdiff1d(everything, rows)
    keep["without exactly the wrong labels"] = everything[~data.wrong.numpy()]
    results: dict[str, list[float]] = {name: [] for name in keep}
    results["without random ones (control)"] = []
    for seed in seeds:
        for name, rows in keep.items():
            results[name].append(retrain(data, rows, seed))
            tick("retraining")
        random = np.random.default_rng(seed).permutation(everything)[drop:]
        results["without random ones (control)"].append(retrain(data, random, seed))
        tick("retraining")
    return results
