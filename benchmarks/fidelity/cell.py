"""One cell: a training run, and at chosen steps every estimator beside the exact values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import inrun
from benchmarks.fidelity.models import TASKS
from inrun.directions import ESTIMATORS
from inrun.ledger import residual_shares
from inrun.truth import StepGame, agreement, sample_shares, shapley_values
from inrun.utility import take_rows

CLIP = 1.0


@dataclass(frozen=True)
class Setting:
    """How a run is trained."""

    task: str
    optimizer: str = "adamw"
    rate: float = 1.0
    clip: bool = True
    schedule: str = "constant"
    seed: int = 0

    @property
    def key(self) -> str:
        """The cell's name in the results."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @staticmethod
    def of(key: str) -> Setting:
        """The setting that a cell's name stands for."""
        given = dict(part.split("=") for part in key.split(" "))
        return Setting(
            given["task"], given["optimizer"], float(given["rate"]), given["clip"] == "True",
            given["schedule"], int(given["seed"]),
        )  # fmt: skip

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
        self.utility = inrun.Utility(self.task.loss_fn, self.task.fetch(held_out))

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
    ) -> float:
        """One training step; gives the clip coefficient."""
        optimizer.zero_grad()
        if attribution is None:
            self.task.loss_fn(model, batch).backward()
        else:
            with attribution.batch(range(self.task.players)):
                self.task.loss_fn(model, batch).backward()
        coefficient = 1.0
        if self.setting.clip:
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
            coefficient = min(1.0, CLIP / (norm + 1e-6))
        optimizer.step()
        return coefficient

    def _check(self, step: int, batch: Any) -> dict[str, Any] | None:
        copies = copy.deepcopy((self.model, self.optimizer))
        k = self._step(*copies, batch)
        n = self.task.players
        shares = sample_shares(
            self.model, lambda i: k * self.task.terms(self.model, _row(batch, i)).sum() / n, n
        )
        table = StepGame(self.model, self.optimizer, shares, self.utility).table()
        if not np.isfinite(table).all():
            return None
        truth = {
            "shared": shapley_values(table)[:n, 0],
            "given": shapley_values(table[2**n :])[:, 0],
        }
        estimates = {name: self._estimate(name, "hold", batch) for name in ESTIMATORS}
        estimates["path, stream"] = self._estimate("path", "stream", batch)
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

    def _estimate(self, name: str, capture: str, batch: Any) -> dict[str, Any]:
        """One estimator's values for the coming step, taken by copies."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attribution = inrun.attach(
                model, optimizer, self.utility, estimator=name, capture=capture,
                smoothed_steps=0, progress=False, self_test=False,
            )  # fmt: skip
            self._step(model, optimizer, batch, attribution)
        attribution.detach()
        return {
            "values": attribution.values()["value"].to_pylist(),
            "residual": float(residual_shares(attribution.ledger())[0]),
        }


def _row(batch: Any, i: int) -> Any:
    return take_rows(batch, [i])


def measure(key: str) -> list[dict[str, Any]]:
    """The records of the cell of that name."""
    return Cell(Setting.of(key)).run()
