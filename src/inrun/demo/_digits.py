"""The demo's data and model: scikit-learn's handwritten digits, part of the labels wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINING, VALIDATION = 1000, 300
WRONG_SHARE = 0.2
CLASSES = 10
BATCH = 32
EPOCHS = 15  # long enough for the network to start learning the wrong labels by heart
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in 0 to 1; `labels` are those trained on, `truth` the real ones."""

    images: Tensor
    labels: Tensor
    truth: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def wrong(self) -> Tensor:
        """Which training labels are wrong, (n,) bool."""
        return self.labels != self.truth

    @property
    def targets(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The validation set, one batch a class."""
        x, y = self.validation
        return {f"digit {c}": (x[y == c], y[y == c]) for c in range(CLASSES)}


def load(seed: int) -> Digits:
    """Splits the 1,797 digits and makes a fifth of the training labels wrong, at random."""
    digits: Any = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    truth = torch.tensor(digits.target)[order]
    split = TRAINING + VALIDATION
    changed = torch.randperm(TRAINING, generator=generator)[: int(WRONG_SHARE * TRAINING)]
    labels = truth[:TRAINING].clone()
    shift = torch.randint(1, CLASSES, (len(changed),), generator=generator)
    labels[changed] = (labels[changed] + shift) % CLASSES
    return Digits(
        images=images[:TRAINING],
        labels=labels,
        truth=truth[:TRAINING],
        validation=(images[TRAINING:split], truth[TRAINING:split]),
        test=(images[split:], truth[split:]),
    )


def model() -> nn.Module:
    """A small convolutional network, about 15,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    )


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    """AdamW with decay."""
    return torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)


def loss_fn(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(network(batch[0]), batch[1])


def accuracy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """Share of images whose digit is named right."""
    with torch.no_grad():
        return float((network(batch[0]).argmax(1) == batch[1]).float().mean())
