"""The demo's runs: training with attribution, audited at a few of its steps, and retraining."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

import inrun
from inrun.demo import _digits as digits
from inrun.truth import AuditReport

Tick = Callable[[str], None]

AUDIT_SECONDS, GROUPS = 15, 5  # for checks at random steps, each by exact values of its groups


@dataclass(frozen=True)
class Trained:
    """What the attributed run left.

    `mean_loss` (N,) and `probabilities` (N, classes) are means over a sample's visits.
    """

    values: pa.Table
    visits: pa.Table
    ledger: pa.Table
    coverage: pa.Table
    mean_loss: np.ndarray
    probabilities: np.ndarray
    audit: pa.Table
    report: AuditReport
    seconds: float
    overhead: float


def train(data: digits.Digits, seed: int, store: Path, tick: Tick, progress: bool) -> Trained:
    """Trains on the partly wrong labels with attribution attached."""
    torch.manual_seed(seed)
    network = digits.model()
    optimizer = digits.optimizer_of(network)
    utility = inrun.Utility(digits.loss_fn, targets=data.targets)
    attribution = inrun.attach(
        network, optimizer, utility, store=store, options=inrun.Options(progress=progress)
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
    return Trained(
        values=attribution.values(),
        visits=attribution.visits(),
        ledger=attribution.ledger(),
        coverage=attribution.coverage(),
        mean_loss=losses / digits.EPOCHS,
        probabilities=probabilities / digits.EPOCHS,
        audit=audit.table(),
        report=report,
        seconds=seconds,
        overhead=attribution.overhead,
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
