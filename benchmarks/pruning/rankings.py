"""Rankings of a split's samples, high for what is dropped first. N samples, K classes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.classification.evidence import LOOK_AHEAD, PAID_OUT, Evidence
from benchmarks.classification.tasks import Split
from inrun.uses import harm_sums

BALANCED = ", balanced"
PLAIN_ONLY = ("linearized, total", "path, harm, then random")
METHODS = {"path": True, PAID_OUT: False, "sgd": False, "linearized": False, LOOK_AHEAD: False}


def rankings(split: Split, evidence: Evidence, seed: int) -> dict[str, np.ndarray]:
    """Scores (N,) by name."""
    chance = np.random.default_rng(seed).random(len(split.labels))
    path = evidence.visits["path"]
    harm = -harm_sums(path, tuple(split.targets))[1].min(1)
    normalised = summed(path, "value_normalised")
    return {
        "random": chance,
        "mean loss": evidence.losses.mean(1),
        **{f"{m}, total": -summed(evidence.visits[m], "value") for m in METHODS},
        "path, normalised": -normalised,
        "path, harm": harm,
        "path, harm, then random": _first(harm, normalised < 0, chance),
    }


def summed(visits: pa.Table, column: str) -> np.ndarray:
    """A column's sum over each sample's visits, in the order of samples."""
    return np.bincount(visits["sample_id"].to_numpy(), visits[column].to_numpy())


def _first(score: np.ndarray, chosen: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The chosen ones by their score, then all others by theirs, which are below 1."""
    return np.where(chosen, 1 + score - score.min(), rest)


def kept(score: np.ndarray, share: float, labels: np.ndarray | None) -> np.ndarray:
    """Row numbers that stay when a share is dropped; with labels, the same share of each."""
    groups = np.zeros(len(score), int) if labels is None else labels
    parts = []
    for label in np.unique(groups):
        rows = np.flatnonzero(groups == label)
        order = rows[np.argsort(score[rows], kind="stable")]
        parts.append(order[: len(rows) - round(share * len(rows))])
    return np.sort(np.concatenate(parts))
