"""What an audit names where something was made wrong on purpose, and where nothing was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lion_pytorch
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.keyed import Keyed
from benchmarks.statements.trainings import batches, digits, loss_fn, model

Batch = tuple[Tensor, Tensor]
STEPS, SECONDS = 240, 3.0


@dataclass(frozen=True)
class Setting(Keyed):
    """What was made wrong, and the draw of the data."""

    audit: str
    data: int


def _numpy_noise(network: nn.Module, batch: Batch) -> Tensor:
    kept = np.random.default_rng().random(batch[0].shape) > 0.3
    return loss_fn(network, (batch[0] * torch.from_numpy(kept / 0.7).float(), batch[1]))


def _flipped(network: nn.Module, batch: Batch) -> Tensor:
    return -loss_fn(network, batch)


def _three_classes(batch: Batch) -> Batch:
    rows = batch[1] < 3
    return batch[0][rows], batch[1][rows]


def _wrong(batch: Batch) -> Batch:
    rng = np.random.default_rng(0)
    labels = batch[1].clone()
    rows = torch.tensor(rng.permutation(len(labels))[: round(0.4 * len(labels))])
    labels[rows] = (labels[rows] + torch.tensor(rng.integers(1, 10, len(rows)))) % 10
    return batch[0], labels


def _adam(rate: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate, **options)


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "parts-of-the-rows": {"scoring": inrun.EveryStep(validation_parts=4)},
    "older-gradients": {"scoring": inrun.EveryStep(validation_every=10)},
    "lion": {"optimizer": lambda p: lion_pytorch.Lion(p, lr=1e-3)},
    "rprop": {"optimizer": lambda p: torch.optim.Rprop(p, lr=1e-3)},
    "numbers-by-numpy": {"loss": _numpy_noise},
    "flipped-loss": {"loss": _flipped},
    "3-of-10-classes": {"judges": _three_classes},
    "40%-wrong-labels": {"judges": _wrong},
    "large-rate": {"optimizer": _adam(0.3)},
}


def measure(key: str) -> dict[str, Any]:
    """The names of the causes, and the numbers beside them."""
    setting = Setting.of(key)
    change, data = CHANGES[setting.audit], digits("balanced", 0.0, setting.data)
    network = model(setting.data)
    optimizer = change.get("optimizer", _adam(3e-3))(network.parameters())
    judges = change.get("judges", lambda batch: batch)(data.judges[0])
    utility = inrun.Utility(change.get("loss", loss_fn), judges)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inrun.errors.InRunWarning)
        attribution = inrun.attach(
            network, optimizer, utility, scoring=change.get("scoring", inrun.EveryStep()),
            options=inrun.Options(progress=False, self_test=False, smoothed_steps=0),
        )  # fmt: skip
        audit = attribution.audit(seconds=SECONDS, steps=STEPS, groups=4)
        for ids in batches(torch.arange(len(data.labels)), setting.data):
            with attribution.batch(ids):
                F.cross_entropy(network(data.images[ids]), data.labels[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
    found = audit.report()
    return {
        "named": [cause.name for cause in found.causes],
        "label gain": found.label_gain,
        "classes": audit.table()["validation_classes"][0].as_py(),
        "checks": found.checks,
        "R": found.pearson.median,
    }
