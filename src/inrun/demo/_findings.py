"""What the demo's tables say: wrong labels found, labels suggested, what dropping them gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from inrun.demo import _digits as digits
from inrun.demo._experiment import Tick, Trained, retrain
from inrun.uses import harm_profile

DROPPED_SHARE = 0.2


@dataclass(frozen=True)
class Findings:
    """Scores are so oriented that a high one means: this label is wrong."""

    scores: dict[str, np.ndarray]
    auc: dict[str, float]
    suggested: np.ndarray
    right_suggestions: float

    @property
    def best_first(self) -> np.ndarray:
        """Samples by harm profile, the most harmful first."""
        return np.argsort(-self.scores["harm profile"])


def findings(data: digits.Digits, trained: Trained) -> Findings:
    """Ranks samples by each method and scores the rankings against the known wrong labels."""
    targets = tuple(data.targets)
    profile = harm_profile(trained.visits, targets)
    suggested = np.array([targets.index(t) for t in profile["worst_target"].to_pylist()])
    scores = {
        "harm profile": -profile["worst_value"].to_numpy(),
        "value, normalised": -trained.values["value_normalised"].to_numpy(),
        "value, total": -trained.values["value"].to_numpy(),
        "mean training loss": trained.mean_loss,
    }
    wrong = data.wrong.numpy()
    auc = {name: float(roc_auc_score(wrong, score)) for name, score in scores.items()}
    right = float((suggested == data.truth.numpy())[wrong].mean())
    return Findings(scores, auc, suggested, right)


def retrained(
    data: digits.Digits, found: Findings, seeds: Sequence[int], tick: Tick
) -> dict[str, list[float]]:
    """Test accuracy, one number a seed, with a fifth of the samples dropped in several ways."""
    drop = int(DROPPED_SHARE * digits.TRAINING)
    everything = np.arange(digits.TRAINING)
    keep = {"all samples": everything}
    for name in ("harm profile", "value, normalised", "value, total", "mean training loss"):
        worst = np.argsort(-found.scores[name])[:drop]
        keep[f"without the worst by {name}"] = np.setdiff1d(everything, worst)
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
