"""One split, judged by classes alike and by their training shares: what either is good for.

The values are known by class and by half of the validation rows, from one training, so that both
judgements, and their agreement between halves, are sums of the same numbers. Letters: N samples,
K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.classification.evidence import gather, trained
from benchmarks.classification.tasks import Inputs, Split, split
from benchmarks.keyed import Keyed
from benchmarks.pruning.cell import DROPS
from benchmarks.pruning.rankings import BALANCED, kept

RANDOM, TARGET = "random", "{} {}"  # a target is a half of the validation rows of a class


@dataclass(frozen=True)
class Setting(Keyed):
    """A data set, 'natural' or 'imbalanced' classes, the share of wrong labels, and a seed."""

    task: str
    shares: str
    noise: float
    seed: int


class Halved(Split):
    """A split whose validation rows of each class are halved into targets."""

    @property
    def halves(self) -> dict[str, Tensor]:
        """Validation rows by target."""
        labels = self.validation[1]
        found = {}
        for k in range(len(self.names)):
            rows = torch.nonzero(labels == k)[:, 0]
            found |= {TARGET.format(half, k): rows[half::2] for half in (0, 1)}
        return {name: rows for name, rows in found.items() if len(rows)}

    @property
    def targets(self) -> dict[str, tuple[Inputs, Tensor]]:
        """The validation set, two batches per class."""
        inputs, y = self.validation
        return {name: (tuple(t[r] for t in inputs), y[r]) for name, r in self.halves.items()}


def measure(key: str) -> dict[str, Any]:
    """By judge: AUC for wrong labels, agreement of halves, harmful shares, pruned accuracies."""
    setting = Setting.of(key)
    data = split(setting.task, setting.noise, setting.seed)
    data = Halved(**_fields(thinned(data) if setting.shares == "imbalanced" else data))
    visits = gather(data, setting.seed, {"path": True}).visits["path"]
    ids, n, k = visits["sample_id"].to_numpy(), len(data.labels), len(data.names)
    values, rows = np.zeros((2, n, k)), np.zeros((2, k))
    for half in (0, 1):
        for label in range(k):
            name = TARGET.format(half, label)
            if name in data.halves:
                values[half, :, label] = np.bincount(ids, visits[name].to_numpy(), n)
                rows[half, label] = len(data.halves[name])
    labels, wrong = data.labels.numpy(), data.wrong.numpy()
    shares = np.bincount(labels, minlength=k) / n
    found: dict[str, Any] = {}
    chance = np.random.default_rng(setting.seed).random(n)
    pruned = {RANDOM: _pruned(data, chance, setting.seed)}
    for judge, weights in (("even", np.full(k, 1 / k)), ("training", shares)):
        halves = values @ weights
        total = (values * rows[:, None]).sum(0) / np.maximum(rows.sum(0), 1) @ weights
        found[judge] = {
            "auc": float(roc_auc_score(wrong, -total)) if wrong.any() else None,
            "halves": float(spearmanr(*halves)[0]),
            "halves within classes": _within(halves, labels),
            "largest class harmful": float((total[labels == shares.argmax()] < 0).mean()),
        }
        pruned[judge] = _pruned(data, -total, setting.seed)
    return {"judged": found, "pruned": pruned, "shares": shares.tolist()}


def thinned(data: Split) -> Split:
    """With a quarter of the rows of the later half of the classes, everywhere."""

    def stay(labels: Tensor) -> Tensor:
        chosen = labels < len(data.names) / 2
        for k in range(len(data.names)):
            chosen[torch.nonzero(labels == k)[::4, 0]] = True
        return torch.nonzero(chosen)[:, 0]

    def part(batch: tuple[Inputs, Tensor]) -> tuple[Inputs, Tensor]:
        rows = stay(batch[1])
        return tuple(t[rows] for t in batch[0]), batch[1][rows]

    rows = stay(data.truth)
    return dataclasses.replace(
        data, inputs=tuple(t[rows] for t in data.inputs), labels=data.labels[rows],
        truth=data.truth[rows], validation=part(data.validation), test=part(data.test),
        recipe=dataclasses.replace(data.recipe, training=len(rows)),
    )  # fmt: skip


def _fields(data: Split) -> dict[str, Any]:
    return {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}


def _within(halves: np.ndarray, labels: np.ndarray) -> float:
    """Mean rank correlation inside the classes, each counted by its rows."""
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    classes = [own for own in classes if len(own) > 2]
    found = [spearmanr(*halves[:, own])[0] for own in classes]
    return float(np.average(found, weights=[len(own) for own in classes]))


def _pruned(data: Split, score: np.ndarray, seed: int) -> dict[str, dict[str, list[float]]]:
    """By share dropped, with and without balance: accuracy, and its mean over classes."""
    labels = data.labels.numpy()
    found: dict[str, dict[str, list[float]]] = {}
    for name, groups in (("plain", None), (BALANCED[2:], labels)):
        found[name] = {}
        for share in DROPS:
            rows = torch.as_tensor(kept(score, share, groups))
            model = trained(data, rows, 1000 + seed).eval()
            with torch.no_grad():
                right = (model(*data.test[0]).argmax(1) == data.test[1]).double()
            classes = [float(right[data.test[1] == k].mean()) for k in data.test[1].unique()]
            found[name][str(share)] = [float(right.mean()), float(np.mean(classes))]
    return found
