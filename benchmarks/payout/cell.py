"""One cell: the same training with windows of several lengths, in turn, step by step.

Letters: N samples.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

import inrun
from benchmarks.classification import tasks
from benchmarks.classification.evidence import batches, start
from benchmarks.classification.tasks import Split, split
from benchmarks.keyed import Keyed
from inrun.ledger import totals

NOISE = 0.2
WINDOWS = (0, 5, 10, 20, 40)


@dataclass(frozen=True)
class Setting(Keyed):
    """A data set with a fifth of its labels wrong, and a seed for everything."""

    task: str
    seed: int


class Run:
    """One training with one window."""

    def __init__(self, data: Split, seed: int, window: int):
        self.data = data
        self.model, self.optimizer = start(data, seed)
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(tasks.weighted_loss, data.whole),
            momentum_window=window,
            options=inrun.Options(progress=False),
        )
        self.seconds: list[float] = []
        self.bytes = 0

    def step(self, ids: Tensor) -> None:
        """One optimizer step, timed."""
        began = time.perf_counter()
        with self.attribution.batch(ids.tolist()):
            tasks.loss_fn(self.model, self.data.fetch(ids)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - began)
        if len(self.seconds) == max(WINDOWS) + 20:
            self.bytes = self.attribution.waiting["bytes"]


def measure(key: str) -> dict[str, Any]:
    """By window: AUC for wrong labels, rank correlation with look-ahead, books, time, memory."""
    setting = Setting.of(key)
    data = split(setting.task, NOISE, setting.seed)
    runs = {window: Run(data, setting.seed, window) for window in WINDOWS}
    rows = torch.arange(data.recipe.training)
    for number, ids in enumerate(batches(data, rows, setting.seed)):
        turn = list(runs.values())
        for run in turn if number % 2 else reversed(turn):
            run.step(ids)
    whole = _looked_ahead(data, setting.seed)
    wrong, plain = data.wrong.numpy(), runs[0]
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in plain.model.parameters()),
        "steps": len(plain.seconds),
        "look-ahead auc": round(float(roc_auc_score(wrong, -whole)), 4),
    }
    for window, run in runs.items():
        run.attribution.detach()
        values, books = run.attribution.values(), totals(run.attribution.ledger())
        total = values["value"].to_numpy()
        change = books["opening_loss"] - books["closing_loss"]
        steady = slice(max(WINDOWS) + 1, None)
        ratios = [a / b for a, b in zip(run.seconds[steady], plain.seconds[steady], strict=True)]
        result[str(window)] = {
            "auc": round(float(roc_auc_score(wrong, -total)), 4),
            "auc_normalised": round(
                float(roc_auc_score(wrong, -values["value_normalised"].to_numpy())), 4
            ),
            "look_ahead": round(float(spearmanr(total, whole).statistic), 4),
            "samples": round(books["samples"] / change, 4),
            "momentum": round(books["momentum"] / change, 4),
            "time": round(median(ratios), 3),
            "bytes": run.bytes,
        }
    return result


def _looked_ahead(data: Split, seed: int) -> np.ndarray:
    """(N,): what each sample did to the loss at the run's end, by look-ahead."""
    model, optimizer = start(data, seed)
    recorder = inrun.record(model, optimizer, tasks.losses, data.fetch)
    for ids in batches(data, torch.arange(data.recipe.training), seed):
        with recorder.batch(ids.tolist()):
            tasks.loss_fn(model, data.fetch(ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = inrun.lookahead(recorder.finish(), inrun.Utility(tasks.weighted_loss, data.whole))
    values: np.ndarray = found.values()["value"].to_numpy()
    return values
