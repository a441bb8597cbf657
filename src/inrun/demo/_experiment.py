"""The demo's runs: training with attribution, the truth of a few of its steps, and retraining."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from inrun.demo import _digits as digits
from inrun.truth import StepGame, sample_shares

Tick = Callable[[str], None]

CHECKED = (3, 50, 200)  # steps whose values are compared with exact ones
PLAYERS = 8


@dataclass(frozen=True)
class Checked:
    """One step's values beside the exact ones, for a batch of `PLAYERS` samples."""

    step: int
    values: np.ndarray
    exact: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What the attributed run left."""

    values: pa.Table
    visits: pa.Table
    ledger: pa.Table
    coverage: pa.Table
    mean_loss: np.ndarray
    checked: list[Checked]
    seconds: float
    overhead: float


def train(data: digits.Digits, seed: int, store: Path, tick: Tick, progress: bool) -> Trained:
    """Trains on the partly wrong labels with attribution attached."""
    torch.manual_seed(seed)
    network = digits.model()
    optimizer = digits.optimizer_of(network)
    utility = inrun.Utility(digits.loss_fn, data.targets)
    attribution = inrun.attach(network, optimizer, utility, store=store, progress=progress)
    losses, checked, checking = np.zeros(digits.TRAINING), [], 0.0
    began = time.perf_counter()
    for step, ids in enumerate(_batches(seed), start=1):
        if step in CHECKED:
            pause = time.perf_counter()
            checked.append(_check(network, optimizer, data, ids[:PLAYERS], step))
            checking += time.perf_counter() - pause
        with attribution.batch(ids):
            sample_losses = F.cross_entropy(
                network(data.images[ids]), data.labels[ids], reduction="none"
            )
            sample_losses.mean().backward()
        losses[ids.numpy()] += sample_losses.detach().numpy()
        optimizer.step()
        optimizer.zero_grad()
        tick("training with attribution")
    seconds = time.perf_counter() - began - checking
    attribution.detach()
    return Trained(
        values=attribution.values(),
        visits=attribution.visits(),
        ledger=attribution.ledger(),
        coverage=attribution.coverage(),
        mean_loss=losses / digits.EPOCHS,
        checked=checked,
        seconds=seconds,
        overhead=attribution.seconds / (seconds - attribution.seconds),
    )


def _batches(seed: int, among: Tensor | None = None) -> list[Tensor]:
    """Every epoch's batches, in a fresh order each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(digits.TRAINING) if among is None else among
    return [
        batch
        for _ in range(digits.EPOCHS)
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(digits.BATCH)
    ]


def _check(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: digits.Digits,
    ids: Tensor,
    step: int,
) -> Checked:
    """A step of this very run, on copies: its values, and exact ones by enumeration.

    The copies take the step with `PLAYERS` of its samples, so that every coalition of them and
    of the past can be played out with the real optimizer.
    """
    network, optimizer = copy.deepcopy((network, optimizer))
    optimizer.zero_grad()
    x, y = data.images[ids], data.labels[ids]
    shares = sample_shares(
        network, lambda i: digits.loss_fn(network, (x[i : i + 1], y[i : i + 1])) / PLAYERS, PLAYERS
    )
    utility = inrun.Utility(digits.loss_fn, data.validation)
    exact = StepGame(network, optimizer, shares, utility).exact()[:, 0]
    attribution = inrun.attach(network, optimizer, utility, progress=False)
    with attribution.batch(range(PLAYERS)):
        digits.loss_fn(network, (x, y)).backward()
    optimizer.step()
    attribution.detach()
    return Checked(step, attribution.values()["value"].to_numpy(), exact)


def retrain(data: digits.Digits, keep: Sequence[int] | np.ndarray, seed: int) -> float:
    """Test accuracy after plain training on some of the samples only, from another start."""
    torch.manual_seed(1000 + seed)
    network = digits.model()
    optimizer = digits.optimizer_of(network)
    for ids in _batches(1000 + seed, torch.as_tensor(np.asarray(keep))):
        digits.loss_fn(network, (data.images[ids], data.labels[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return digits.accuracy(network, data.test)
