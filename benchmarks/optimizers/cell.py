"""One cell: a training run with one optimizer, and at chosen steps `path` beside exact values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

import inrun
from benchmarks.fidelity.models import TASKS
from benchmarks.keyed import Keyed
from benchmarks.optimizers.makers import Optimizers, optimizers
from inrun.ledger import residual_shares
from inrun.optim import copies
from inrun.truth import StepGame, agreement, sample_shares
from inrun.utility import take_rows

CLIP = 1.0
STEPS = {6: (2, 4, 8, 16, 50, 120, 300), 12: (2, 8, 30, 100)}
WAYS: dict[str, dict[str, Any]] = {"attached": {}, "straight": {"smoothed_steps": 0}}


@dataclass(frozen=True)
class Setting(Keyed):
    """How a run is trained; `players` samples a step."""

    task: str
    optimizer: str
    players: int = 6


class Cell:
    """A training run that stops at the checked steps."""

    def __init__(self, setting: Setting):
        self.task = replace(TASKS[setting.task](), players=setting.players)
        self.steps = STEPS[setting.players]
        torch.manual_seed(0)
        self.model = self.task.build()
        self.optimizers = optimizers(setting.optimizer, self.model)
        held_out = torch.arange(self.task.rows)[-self.task.validation_rows :]
        self.utility = inrun.Utility(self.task.loss_fn, self.task.fetch(held_out))

    def _batches(self) -> Iterator[torch.Tensor]:
        generator, n = torch.Generator().manual_seed(0), self.task.players
        free = (self.task.rows - self.task.validation_rows) // n * n
        while True:
            yield from torch.randperm(free, generator=generator).split(n)

    def run(self) -> list[dict[str, Any]]:
        """A record a checked step; shorter than asked for where the training diverged."""
        records = []
        for step, rows in zip(range(1, max(self.steps) + 1), self._batches(), strict=False):
            batch = self.task.fetch(rows)
            if step in self.steps:
                record = self._check(step, batch)
                if not np.isfinite(record["truth"]).all():
                    break
                records.append(record)
            self._step(self.model, self.optimizers, batch)
        return records

    def _step(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        batch: Any,
        attribution: inrun.Attribution | None = None,
    ) -> float:
        """One training step; gives the clip coefficient."""
        model.zero_grad()
        if attribution is None:
            self.task.loss_fn(model, batch).backward()
        else:
            with attribution.batch(range(self.task.players)):
                self.task.loss_fn(model, batch).backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        for optimizer in optimizers:
            optimizer.step()
        return min(1.0, CLIP / (norm + 1e-6))

    def _check(self, step: int, batch: Any) -> dict[str, Any]:
        n = self.task.players
        k = self._step(*copies(self.model, self.optimizers), batch)
        shares = sample_shares(
            self.model,
            lambda i: k * self.task.terms(self.model, take_rows(batch, [i])).sum() / n,
            n,
        )
        truth = StepGame(self.model, self.optimizers, shares, self.utility).exact()[:, 0]
        estimates = {way: self._estimate(batch, options) for way, options in WAYS.items()}
        return {
            "step": step,
            "truth": truth.tolist(),
            "estimates": {
                way: found | agreement(np.array(found["values"]), truth)._asdict()
                for way, found in estimates.items()
            },
        }

    def _estimate(self, batch: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The values of the coming step, taken by copies."""
        model, twins = copies(self.model, self.optimizers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attribution = inrun.attach(
                model,
                twins,
                self.utility,
                options=inrun.Options(progress=False, self_test=False),
                **options,
            )
            self._step(model, twins, batch, attribution)
        attribution.detach()
        ledger = attribution.ledger()
        return {
            "values": attribution.values()["value"].to_pylist(),
            "residual": float(residual_shares(ledger)[0]),
            "estimator": ledger["estimator"][0].as_py(),
        }


def measure(key: str) -> list[dict[str, Any]]:
    """The records of the cell of that name."""
    return Cell(Setting.of(key)).run()
