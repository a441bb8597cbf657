"""One cell: a training run, and at chosen steps every estimator beside the exact values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import inrun
from benchmarks.fidelity.models import TASKS
from benchmarks.keyed import Keyed
from inrun.directions import Direction
from inrun.ledger import residual_shares
from inrun.truth import StepGame, agreement, sample_shares, shapley_values
from inrun.utility import take_rows

CLIP = 1.0


@dataclass(frozen=True)
class Setting(Keyed):
    """How a run is trained."""

    task: str
    optimizer: str = "adamw"
    rate: float = 1.0
    clip: bool = True
    schedule: str = "constant"
    seed: int = 0
    precision: str = "float32"

    def build_optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer; SGD's rates are those of Adam times 50, which trains as fast here."""
        lr, p = learning_rate * self.rate, model.parameters()
        return {
            "adamw": lambda: torch.optim.AdamW(p, lr=lr, weight_decay=0.01),
            "adamw-95": lambda: torch.optim.AdamW(p, lr=lr, weight_decay=0.01, betas=(0.9, 0.95)),
            "adam": lambda: torch.optim.Adam(p, lr=lr),
            "sgd": lambda: torch.optim.SGD(p, lr=50 * lr),
            "sgd-momentum": lambda: torch.optim.SGD(p, lr=5 * lr, momentum=0.9),
        }[self.optimizer]()

    def factor(self, step: int, steps: int) -> float:
        """The schedule's multiple of the learning rate at a step from 1 on."""
        if self.schedule == "constant":
            return 1.0
        warmup = max(1, steps // 10)
        if step <= warmup:
            return step / warmup
        return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / (steps - warmup + 1))))


class Cell:
    """A training run that stops at the task's checked steps."""

    def __init__(self, setting: Setting, steps: tuple[int, ...] | None = None):
        self.setting, self.task = setting, TASKS[setting.task]()
        self.steps = steps or self.task.steps
        torch.manual_seed(setting.seed)
        self.model = self.task.build()
        self.optimizer = setting.build_optimizer(self.model, self.task.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        held_out = torch.arange(self.task.rows)[-self.task.validation_rows :]
        self.utility = inrun.Utility(self._validation_loss, self.task.fetch(held_out))

    def _validation_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """In float32, unless bf16 is asked for there too."""
        with self._precision() if self.setting.precision == "bf16-both" else nullcontext():
            return self.task.loss_fn(model, batch)

    def _batches(self) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.setting.seed)
        free = self.task.rows - self.task.validation_rows
        while True:
            order = torch.randperm(free, generator=generator)
            yield from order[: free // self.task.players * self.task.players].split(
                self.task.players
            )

    def run(self) -> list[dict[str, Any]]:
        """A record a checked step; shorter than asked for where the training diverged."""
        records = []
        for step, rows in zip(range(1, max(self.steps) + 1), self._batches(), strict=False):
            factor = self.setting.factor(step, max(self.steps))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            batch = self.task.fetch(rows)
            if step in self.steps:
                record = self._check(step, batch)
                if record is None:
                    break
                records.append(record)
            self._step(self.model, self.optimizer, batch)
        return records

    def _step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        attribution: inrun.Attribution | None = None,
        stretch: float = 1.0,
    ) -> float:
        """One training step; gives what became of the gradient, as a factor."""
        optimizer.zero_grad()
        ids = range(self.task.players)
        with nullcontext() if attribution is None else attribution.batch(ids), self._precision():
            self.task.loss_fn(model, batch).backward()
        if self.setting.clip:
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
            factor = min(1.0, CLIP / (norm + 1e-6))
        else:
            factor = 1.0
        if stretch != 1.0:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.mul_(stretch)
        optimizer.step()
        return factor * stretch

    def _precision(self) -> torch.autocast:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.setting.precision != "float32")

    def _term(self, batch: Any, i: int) -> torch.Tensor:
        """Sample i's own loss."""
        with self._precision():
            return self.task.terms(self.model, take_rows(batch, [i])).sum()

    def _check(self, step: int, batch: Any) -> dict[str, Any] | None:
        k, n = self._step(*copy.deepcopy((self.model, self.optimizer)), batch), self.task.players
        shares = sample_shares(self.model, lambda i: k * self._term(batch, i) / n, n)
        table = StepGame(self.model, self.optimizer, shares, self.utility).table()
        if not np.isfinite(table).all():
            return None
        truth = {
            "shared": shapley_values(table)[:n, 0],
            "given": shapley_values(table[2**n :])[:, 0],
        }
        estimates = {name: self._estimate(name, batch) for name in self.task.estimators}
        estimates["path, attached"] = self._estimate("path", batch, smoothed_steps=10)
        estimates["path, stream"] = self._estimate("path", batch, capture="stream")
        return {
            "step": step,
            "truth": {game: values.tolist() for game, values in truth.items()},
            "estimates": estimates,
            "agreement": {
                name: {
                    game: agreement(np.array(estimate["values"]), values)._asdict()
                    for game, values in truth.items()
                }
                for name, estimate in estimates.items()
            },
        }

    def _estimate(
        self,
        estimator: str | Direction,
        batch: Any,
        *,
        capture: str = "hold",
        smoothed_steps: int = 0,
        stretch: float = 1.0,
    ) -> dict[str, Any]:
        """One estimator's values for the coming step, taken by copies."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attribution = inrun.attach(
                model,
                optimizer,
                self.utility,
                estimator=estimator,
                options=inrun.Options(
                    capture=capture, smoothed_steps=smoothed_steps, progress=False, self_test=False
                ),
            )
            self._step(model, optimizer, batch, attribution, stretch)
        attribution.detach()
        return {
            "values": attribution.values()["value"].to_pylist(),
            "residual": float(residual_shares(attribution.ledger())[0]),
        }


def measure(key: str) -> list[dict[str, Any]]:
    """The records of the cell of that name."""
    return Cell(Setting.of(key)).run()
