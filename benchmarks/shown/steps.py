"""What single steps of one small training say: the numbers behind the pictures of docs/value.md.

A network of 64-32-10 learns scikit-learn's digits, a fifth of the labels wrong, with AdamW at rate
3e-3 in batches of 16.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import inrun
from inrun.replay import Method, looked_ahead, push_named, removal_named
from inrun.truth import StepGame, sample_shares

ROWS, BATCH, STEP, STEPS = 640, 16, 150, 230
GAME, GAME_STEP = 4, 6  # samples whose coalitions are shown, early, where coalitions differ
LATER = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 80)


class Task:
    """Data, a fresh model and its optimizer."""

    def __init__(self) -> None:
        digits: Any = load_digits()
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(digits.target), generator=generator)
        self.x = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
        truth = torch.tensor(digits.target)[order]
        self.y = truth.clone()
        wrong = torch.randperm(ROWS, generator=generator)[: ROWS // 5]
        self.y[wrong] = (
            self.y[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)
        ) % 10
        self.wrong = self.y != truth
        self.judges = (self.x[ROWS : ROWS + 300], truth[ROWS : ROWS + 300])
        self.utility = inrun.Utility(self.loss_fn, self.judges)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.01)

    @staticmethod
    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(model(batch[0]), batch[1])

    @staticmethod
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Terms that add up to the mean."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[0])

    def rows(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Pictures and labels."""
        at = torch.as_tensor(ids)
        return self.x[at], self.y[at]

    def batches(self, steps: int) -> list[Tensor]:
        """Of whole passes over the data, in a fixed order."""
        generator = torch.Generator().manual_seed(1)
        found: list[Tensor] = []
        while len(found) < steps:
            found += torch.randperm(ROWS, generator=generator).split(BATCH)
        return found[:steps]


def shown() -> dict[str, Any]:
    """Rows for each picture."""
    return {**_one_step(), "later": _later()}


def _one_step() -> dict[str, Any]:
    """Values and books of step `STEP`, and the game of `GAME` of its samples."""
    task = Task()
    batches = task.batches(STEP)
    attribution = inrun.attach(
        task.model, task.optimizer, task.utility, options=inrun.Options(progress=False)
    )
    coalitions: list[dict[str, Any]] = []
    for step, ids in enumerate(batches[:-1], start=1):
        if step == GAME_STEP:
            coalitions = _coalitions(task, ids[:GAME])
        _step(task, attribution, ids)
    before = _values(attribution)
    _step(task, attribution, batches[-1])
    after = _values(attribution)
    rows = [
        {"sample": i, "value": after[i] - before.get(i, 0.0), "wrong": bool(task.wrong[i])}
        for i in batches[-1].tolist()
    ]
    books = attribution.ledger().to_pylist()[-1]
    attribution.detach()
    names = ("opening_loss", "closing_loss", "samples", "momentum", "weight_decay", "residual")
    return {
        "sign": sorted(rows, key=lambda row: -row["value"]),
        "books": {name: books[name] for name in names},
        "coalitions": coalitions,
    }


def _values(attribution: inrun.Attribution) -> dict[int, float]:
    """By sample, its total so far."""
    table = attribution.values()
    return dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))


def _step(task: Task, attribution: inrun.Attribution, ids: Tensor) -> None:
    with attribution.batch(ids):
        task.loss_fn(task.model, task.rows(ids)).backward()
    task.optimizer.step()
    task.optimizer.zero_grad()


def _coalitions(task: Task, ids: Tensor) -> list[dict[str, Any]]:
    """The step with these samples alone, on copies: all coalitions, exact values, and inrun's."""
    model, optimizer = copy.deepcopy((task.model, task.optimizer))
    x, y = task.rows(ids)
    n = len(ids)
    shares = sample_shares(
        model, lambda i: task.loss_fn(model, (x[i : i + 1], y[i : i + 1])) / n, n
    )
    game = StepGame(model, optimizer, shares, task.utility)
    table, exact = game.table()[:, 0], game.exact()[:, 0]
    attribution = inrun.attach(
        model, optimizer, task.utility, options=inrun.Options(progress=False)
    )
    with attribution.batch(ids):
        task.loss_fn(model, (x, y)).backward()
    optimizer.step()
    attribution.detach()
    found = _values(attribution)
    rows = []
    for i, sample in enumerate(ids.tolist()):
        without = [c for c in range(len(table)) if not c >> i & 1]
        marginals = [(float(table[c | 1 << i] - table[c]), "in one coalition") for c in without]
        ours = [(float(exact[i]), "exact Shapley value"), (found[sample], "value by inrun")]
        rows += [
            {"sample": sample, "takes off": value, "kind": kind}
            for value, kind in [*marginals, *ours]
        ]
    return rows


def _later() -> list[dict[str, Any]]:
    """For the samples of step `STEP`, the look-ahead value at several distances."""
    task = Task()
    recorder = inrun.record(task.model, task.optimizer, task.losses, task.rows)
    batches = task.batches(STEPS)
    for ids in batches:
        with recorder.batch(ids.tolist()):
            task.loss_fn(task.model, task.rows(ids)).backward()
        task.optimizer.step()
        task.optimizer.zero_grad()
    run = recorder.finish()
    rows = []
    for distance in LATER:
        state = STEP - 1 + distance
        method = Method(frozenset({state}), removal_named("drop"), push_named("tangent"))
        visits = looked_ahead(run, task.utility, method).visits()
        of_step = visits.filter(np.asarray(visits["step"]) == STEP)
        rows += [
            {
                "sample": row["sample_id"],
                "steps later": distance,
                "value": row["value"],
                "label": "wrong" if task.wrong[row["sample_id"]] else "right",
            }
            for row in of_step.to_pylist()
        ]
    return rows
