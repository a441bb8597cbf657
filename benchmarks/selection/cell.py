"""One cell: the same training under every way to choose what it is trained on.

A step has `BATCH` candidates and trains on `KEPT` of them. Offline keeps the same share of the
whole set and trains as many steps on batches of `KEPT`, so that all arms but `full` take as many
steps on as many rows; `full` trains on every candidate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import inrun
from benchmarks.classification import tasks
from benchmarks.classification.tasks import Split, split
from benchmarks.keyed import Keyed
from inrun.uses import anticipating

TASK, EPOCHS, BATCH, KEPT = "digits", 6, 64, 16
VALIDATION = 128
HORIZONS: tuple[int | None, ...] = (1, 2, 4, 8, 16, None)
ROUNDS = (1, 16)  # beside the default, at horizon 1


@dataclass(frozen=True)
class Setting(Keyed):
    """The share of wrong labels in the training part, the learning rate, a seed for everything."""

    noise: float
    rate: float
    seed: int


def told(horizon: int | None) -> str:
    """A horizon's name."""
    return "run" if horizon is None else str(horizon)


class Experiment:
    """A setting, ready to be trained."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.data: Split = split(TASK, setting.noise, setting.seed)
        inputs, labels = self.data.validation
        held = (tuple(t[:VALIDATION] for t in inputs), labels[:VALIDATION])
        self.utility = inrun.Utility(tasks.loss_fn, held)

    @property
    def steps(self) -> int:
        """Optimizer steps of every arm."""
        return sum(1 for _ in self.batches(torch.arange(len(self.data.labels)), BATCH))

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""
        torch.manual_seed(self.setting.seed)
        model = self.data.recipe.build()
        return model, torch.optim.AdamW(model.parameters(), self.setting.rate, weight_decay=0.01)

    def batches(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Batches in a fresh order each epoch, as many as `EPOCHS` of the whole set have."""
        generator = torch.Generator().manual_seed(self.setting.seed)
        for _ in range(EPOCHS):
            yield from rows[torch.randperm(len(rows), generator=generator)].split(size)

    def plain(self, rows: Tensor, size: int, *, record: bool = False) -> Any:
        """The model, or the recorded run, of an ordinary training."""
        model, optimizer = self.start()
        recorder = None
        if record:
            recorder = inrun.record(
                model, optimizer, tasks.losses, self.data.fetch, steps=self.steps
            )
        for ids in self.batches(rows, size):
            if recorder is None:
                tasks.loss_fn(model, self.data.fetch(ids)).backward()
            else:
                with recorder.batch(ids.tolist()):
                    tasks.loss_fn(model, self.data.fetch(ids)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model if recorder is None else recorder.finish()

    def online(
        self, by: str, horizon: int | None = 1, rounds: int | None = 4
    ) -> tuple[nn.Module, float]:
        """The model, and what share of the chosen rows has a wrong label."""
        model, optimizer = self.start()
        loop = inrun.select.Loop(tasks.losses, self.data.fetch, steps=self.steps)
        selection = anticipating(
            model, optimizer, self.utility, KEPT, by, horizon, rounds, loop, seed=self.setting.seed
        )
        for ids in self.batches(torch.arange(len(self.data.labels)), BATCH):
            with selection.batch(ids.tolist()):
                tasks.loss_fn(model, self.data.fetch(ids)).backward()
            optimizer.step()
            optimizer.zero_grad()
        history = selection.history()
        chosen = history.filter(history["chosen"])["sample_id"].to_numpy()
        return model, float(self.data.wrong[torch.tensor(chosen)].float().mean())

    def offline(self, run: inrun.Trajectory, horizon: int | None, arm: str = "chosen") -> list[int]:
        """Rows to train on, the same share of every label."""
        labels = dict(enumerate(self.data.labels.tolist()))
        found = inrun.select.offline(
            run, self.utility, KEPT / BATCH, horizon=horizon, groups=labels
        )
        return found.arms(self.setting.seed)[arm]


def measure(key: str) -> dict[str, Any]:
    """Test loss, test accuracy and seconds by arm."""
    experiment = Experiment(Setting.of(key))
    everything = torch.arange(len(experiment.data.labels))
    found: dict[str, Any] = {}

    def arm(name: str, train: Callable[[], tuple[nn.Module, float]]) -> None:
        began = time.perf_counter()
        model, wrong = train()
        seconds = time.perf_counter() - began
        found[name] = judged(experiment, model) | {"wrong": wrong, "seconds": round(seconds, 2)}

    arm("full", lambda: (experiment.plain(everything, BATCH), experiment.data.noise))
    arm("random", lambda: experiment.online("random"))
    arm("loss", lambda: experiment.online("loss"))
    for horizon in HORIZONS:
        train = partial(experiment.online, "value", horizon)
        arm(f"online {told(horizon)}", train)
    for rounds in ROUNDS:
        train = partial(experiment.online, "value", rounds=rounds)
        arm(f"online 1, rounds {rounds}", train)
    run = experiment.plain(everything, BATCH, record=True)

    def again(horizon: int | None, name: str = "chosen") -> tuple[nn.Module, float]:
        rows = torch.tensor(experiment.offline(run, horizon, name))
        return experiment.plain(rows, KEPT), float(experiment.data.wrong[rows].float().mean())

    for horizon in HORIZONS:
        arm(f"offline {told(horizon)}", lambda horizon=horizon: again(horizon))
    arm("offline, random", lambda: again(1, "random"))
    arm("offline, loss", lambda: again(1, "loss"))
    return {"arms": found, "steps": experiment.steps}


def judged(experiment: Experiment, model: nn.Module) -> dict[str, float]:
    """Test loss and accuracy."""
    model.eval()
    with torch.no_grad():
        loss = float(tasks.loss_fn(model, experiment.data.test))
    return {
        "test_loss": round(loss, 5),
        "accuracy": round(tasks.accuracy(model, experiment.data.test), 5),
    }
