"""Trainings of 300 digits, or texts, whose values are known by visit, class and validation set.

Each training is attributed once, to two validation sets of the same make with a target per class,
so that what one set, training or part of the visits says can be compared with another. Each set's
targets come in two halves of their rows. Texts are Reuters R8's, as the frozen MiniLM reads them
(means over tokens of its last layer); a small network is trained on that.
Letters: N samples, E visits of each, K classes, D numbers per sample.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inrun
from benchmarks.classification.tasks import encoded_r8
from benchmarks.data import mnist
from inrun.ledger import normalised_by_step
from inrun.utility import HALF

TRAINING, JUDGES, CLASSES, EPOCHS, BATCH = 300, 100, 10, 16, 20
SHARES = {
    "balanced": [0.1] * 10,
    "imbalanced": [0.16] * 5 + [0.04] * 5,
    "mnist": [0.1] * 10,
    "r8": [0.16, 0.14, 0.16, 0.04, 0.14, 0.14, 0.08, 0.14],
}


@dataclass(frozen=True)
class Digits:
    """`images` (N, D); `labels` (N,) are trained on, `truth` the real ones.

    `judges` are two validation sets.
    """

    images: Tensor
    labels: Tensor
    truth: Tensor
    judges: tuple[tuple[Tensor, Tensor], ...]
    test: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        """K; every class has training rows."""
        return int(self.truth.max()) + 1


@dataclass(frozen=True)
class Seen:
    """What a training left, by sample.

    `halves` (sets, 2, N, E, K), by set of judges and half of it, `steps` and `losses` (N, E),
    `probabilities` (N, E, K), and the accuracy on the test digits.
    """

    halves: np.ndarray
    steps: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray
    accuracy: float

    @property
    def values(self) -> np.ndarray:
        """(sets, N, E, K), one set of judges after the other: halves are of equally many rows."""
        mean: np.ndarray = self.halves.mean(1)
        return mean


def digits(shares: str, noise: float, seed: int) -> Digits:
    """Training, two validation sets and test, each with the same shares of classes."""
    x, y = {"mnist": _mnist, "r8": _r8}.get(shares, _digits)()
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[], [], [], []]
    for k, share in enumerate(SHARES[shares]):
        rows = rng.permutation(np.flatnonzero(y.numpy() == k)).tolist()
        for part, size in zip(parts, (TRAINING, JUDGES, JUDGES, 2 * JUDGES), strict=True):
            count = round(share * size)
            part += rows[:count]
            rows = rows[count:]
    training, first, second, test = (torch.tensor(part) for part in parts)
    truth, labels = y[training], y[training].clone()
    changed = torch.tensor(rng.permutation(TRAINING)[: round(noise * TRAINING)], dtype=torch.long)
    classes = len(SHARES[shares])
    shift = torch.tensor(rng.integers(1, classes, len(changed)))
    labels[changed] = (labels[changed] + shift) % classes
    return Digits(
        x[training], labels, truth, ((x[first], y[first]), (x[second], y[second])),
        (x[test], y[test]),
    )  # fmt: skip


def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).reshape(-1, 64) / 16
    return x, torch.tensor(found.target)


def _mnist() -> tuple[Tensor, Tensor]:
    """As large as the digits: 8 x 8 means of the images' middle."""
    x, y = mnist()
    return F.avg_pool2d(x[:, :, 2:26, 2:26], 3).reshape(-1, 64), y


@cache
def _r8() -> tuple[Tensor, Tensor]:
    """Texts, at most 220 of one topic: means over tokens of what the pretrained encoder says."""
    pool = encoded_r8(-1)
    hidden, mask = pool.inputs
    tokens = mask.float()[:, :, None]
    return (hidden * tokens).sum(1) / tokens.sum(1), pool.labels


def model(seed: int, inputs: int = 64, classes: int = CLASSES) -> nn.Module:
    """A network of 2,410 parameters for digits, of 12,584 for texts."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes))


def loss_fn(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(network(batch[0]), batch[1])


def batches(rows: Tensor, seed: int) -> list[Tensor]:
    """Every epoch's batches, in a fresh order each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        batch
        for _ in range(EPOCHS)
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(BATCH)
    ]


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    """AdamW with decay."""
    return torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)


def attributed(data: Digits, seed: int, sets: int = 2) -> Seen:
    """Trains from a seed that decides start and order, judged by so many validation sets."""
    K = data.classes
    network = model(seed, data.images.shape[1], K)
    optimizer = optimizer_of(network)
    targets = {
        f"{number} {half} {k}": (x[y == k][half::2], y[y == k][half::2])
        for number, (x, y) in enumerate(data.judges[:sets])
        for half in range(2)
        for k in range(K)
    }
    utility = inrun.Utility(loss_fn, targets=targets)
    n, names = len(data.labels), list(targets)
    met = np.zeros(n, dtype=int)
    steps, losses = np.zeros((n, EPOCHS), dtype=int), np.zeros((n, EPOCHS))
    probabilities = np.zeros((n, EPOCHS, K))
    with tempfile.TemporaryDirectory() as folder:
        attribution = inrun.attach(
            network, optimizer, utility, store=Path(folder) / "run",
            options=inrun.Options(progress=False, self_test=False),
        )  # fmt: skip
        for step, ids in enumerate(batches(torch.arange(n), seed), start=1):
            with attribution.batch(ids):
                logits = network(data.images[ids])
                each = F.cross_entropy(logits, data.labels[ids], reduction="none")
                each.mean().backward()
            rows = ids.numpy()
            steps[rows, met[rows]], losses[rows, met[rows]] = step, each.detach().numpy()
            probabilities[rows, met[rows]] = logits.detach().softmax(1).numpy()
            met[rows] += 1
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
        visits = attribution.visits()
    order = np.lexsort((visits["step"].to_numpy(), visits["sample_id"].to_numpy()))
    values = np.stack([visits[name].to_numpy()[order] for name in names], 1)
    return Seen(
        values.reshape(n, EPOCHS, sets, 2, K).transpose(2, 3, 0, 1, 4),
        steps, losses, probabilities, accuracy(network, data.test),
    )  # fmt: skip


def accuracy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """The share of images whose digit is named right."""
    with torch.no_grad():
        return float((network(batch[0]).argmax(1) == batch[1]).float().mean())


def visits_table(
    values: np.ndarray, steps: np.ndarray, weights: np.ndarray, half: np.ndarray | None = None
) -> pa.Table:
    """Visits as a run has them, of values (N, E, K) in steps (N, E), with targets 0 to K - 1.

    `half` (N, E) is what half of the validation rows adds to the total.
    """
    n, visits, classes = values.shape
    order = np.argsort(steps.ravel(), kind="stable")
    total = values @ weights
    columns = {"value": total, "value_normalised": normalised_by_visit(total, steps)}
    columns |= {str(k): values[:, :, k] for k in range(classes)}
    columns |= {} if half is None else {HALF: half}
    return pa.table(
        {"step": steps.ravel()[order], "sample_id": np.repeat(np.arange(n), visits)[order]}
        | {name: column.ravel()[order] for name, column in columns.items()}
    )


def normalised_by_visit(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Values over their step's mean size, both (N, E)."""
    return normalised_by_step(values.ravel(), steps.ravel()).reshape(values.shape)


def inside(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    """R of what is left of scores without each label's mean."""
    left = []
    for x in (a, b):
        mean = np.bincount(labels, x) / np.maximum(np.bincount(labels), 1)
        left.append(x - mean[labels])
    return float(np.corrcoef(*left)[0, 1])
