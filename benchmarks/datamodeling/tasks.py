"""What is trained: a small model on digits, and on MNIST-10 a linear model and an MLP.

Rows below `samples` train, the `queries` after them are asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import data


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained."""

    x: Tensor
    y: Tensor
    build: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    samples: int
    queries: int
    batch: int
    halves: int
    finite: bool  # whether every sample's finite push is affordable


def _digits() -> Task:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    return Task(
        x, torch.tensor(labels[order]),
        lambda: nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10)),
        lambda model, rate: torch.optim.AdamW(model.parameters(), lr=rate),
        samples=800, queries=40, batch=32, halves=60, finite=True,
    )  # fmt: skip


def _mnist(build: Callable[[], nn.Module]) -> Task:
    images, labels = data.mnist()
    return Task(
        images.flatten(1), labels, build,
        lambda model, rate: torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
        samples=5000, queries=40, batch=64, halves=40, finite=False,
    )  # fmt: skip


def _mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 128), activation(), nn.Linear(128, 64), activation(), nn.Linear(64, 10)
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": _digits,
    "mnist-lr": lambda: _mnist(lambda: nn.Linear(784, 10)),
    "mnist-mlp": lambda: _mnist(lambda: _mlp(nn.ReLU)),
    "mnist-mlp-gelu": lambda: _mnist(lambda: _mlp(nn.GELU)),
}
