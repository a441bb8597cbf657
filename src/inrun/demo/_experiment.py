"""The demo's runs: training with attribution, audited at a few of its steps, and retraining.

Scores are so oriented that a high one means: this label is wrong, or this sample harms.
Letters: N training samples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

import inrun
from inrun.demo import _digits as digits
from inrun.truth import AuditReport
from inrun.uses import doubts, harm_sums

Tick = Callable[[str], None]

AUDIT_SECONDS, GROUPS = 15, 5  # for checks at random steps, each by exact values of its groups
DROPPED_SHARE = 0.2
BEST, LOSS, TOTAL = "label doubts", "mean training loss", "value, total"
BALANCED, RANDOM = "value, total, balanced over labels", "without random ones (control)"


@dataclass(frozen=True)
class Trained:
    """What the attributed run left in memory; its tables are in its folder.

    `mean_loss` (N,) and `probabilities` (N, C) are means over a sample's visits.
    """

    mean_loss: np.ndarray
    probabilities: np.ndarray
    report: AuditReport
    seconds: float
    overhead: float


@dataclass(frozen=True)
class Findings:
    """`suggested` (N,) is the label that each sample should rather have."""

    scores: dict[str, np.ndarray]
    auc: dict[str, float]
    suggested: np.ndarray
    right_suggestions: float

    @property
    def best_first(self) -> np.ndarray:
        """Samples by label doubts, the most doubtful first."""
        return np.argsort(-self.scores[BEST])


def train(data: digits.Digits, seed: int, store: Path, tick: Tick) -> Trained:
    """Trains on the partly wrong labels with attribution attached."""
    torch.manual_seed(seed)
    network = digits.model()
    optimizer = digits.optimizer_of(network)
    utility = inrun.Utility(digits.loss_fn, targets=data.targets)
    attribution = inrun.attach(
        network, optimizer, utility, store=store, options=inrun.Options(progress=False)
    )
    batches = _batches(seed)
    audit = attribution.audit(seconds=AUDIT_SECONDS, steps=len(batches), groups=GROUPS, seed=seed)
    losses = np.zeros(digits.TRAINING)
    probabilities = np.zeros((digits.TRAINING, digits.CLASSES))
    began = time.perf_counter()
    for ids in batches:
        with attribution.batch(ids):
            logits = network(data.images[ids])
            sample_losses = F.cross_entropy(logits, data.labels[ids], reduction="none")
            sample_losses.mean().backward()
        losses[ids.numpy()] += sample_losses.detach().numpy()
        probabilities[ids.numpy()] += logits.detach().softmax(1).numpy()
        optimizer.step()
        optimizer.zero_grad()
        tick("training with attribution")
    report = audit.report()
    seconds = time.perf_counter() - began - report.seconds
    attribution.detach()
    means = losses / digits.EPOCHS, probabilities / digits.EPOCHS
    return Trained(*means, report, seconds, attribution.overhead)


def findings(data: digits.Digits, trained: Trained, run: inrun.Run) -> Findings:
    """Ranks samples by each method and scores the rankings against the known wrong labels."""
    _, harm = harm_sums(run.visits(), tuple(data.targets))
    doubted = doubts(harm, data.labels.numpy(), trained.mean_loss, trained.probabilities)
    values = run.values()
    scores = {
        BEST: doubted.doubt,
        LOSS: trained.mean_loss,
        "harm profile": -harm.min(1),
        "value, normalised": -values["value_normalised"].to_numpy(),
        TOTAL: -values["value"].to_numpy(),
    }
    wrong = data.wrong.numpy()
    auc = {name: float(roc_auc_score(wrong, score)) for name, score in scores.items()}
    right = float((doubted.suggested == data.truth.numpy())[wrong].mean())
    return Findings(scores, auc, doubted.suggested, right)


def retrained(
    data: digits.Digits, found: Findings, seeds: Sequence[int], tick: Tick
) -> dict[str, list[float]]:
    """Test accuracy, one number per seed, with a fifth of the samples dropped in several ways."""
    rows, labels = np.arange(digits.TRAINING), data.labels.numpy()
    drop = round(DROPPED_SHARE * len(rows))
    worst = {name: np.argsort(-found.scores[name])[:drop] for name in (BEST, LOSS, TOTAL)}
    worst[BALANCED] = np.concatenate([
        of_one[np.argsort(-found.scores[TOTAL][of_one])][: round(DROPPED_SHARE * len(of_one))]
        for of_one in (np.flatnonzero(labels == label) for label in range(digits.CLASSES))
    ])  # fmt: skip
    keep = {"all samples": rows, "without exactly the wrong labels": rows[~data.wrong.numpy()]}
    keep |= {f"without the worst by {n}": np.setdiff1d(rows, few) for n, few in worst.items()}
    results: dict[str, list[float]] = {name: [] for name in (*keep, RANDOM)}
    for seed in seeds:
        random = np.random.default_rng(seed).permutation(rows)[drop:]
        for name, kept in (keep | {RANDOM: random}).items():
            results[name].append(_retrain(data, kept, seed))
            tick("retraining")
    return results


def _retrain(data: digits.Digits, keep: np.ndarray, seed: int) -> float:
    """Test accuracy after plain training on some of the samples only, from another start."""
    torch.manual_seed(1000 + seed)
    network = digits.model()
    optimizer = digits.optimizer_of(network)
    for ids in _batches(1000 + seed, torch.as_tensor(keep)):
        digits.loss_fn(network, (data.images[ids], data.labels[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return digits.accuracy(network, data.test)


def _batches(seed: int, among: Tensor | None = None) -> list[Tensor]:
    """Every epoch's batches, in a fresh order each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(digits.TRAINING) if among is None else among
    return [
        batch
        for _ in range(digits.EPOCHS)
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(digits.BATCH)
    ]
