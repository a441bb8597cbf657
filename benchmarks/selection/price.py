"""What a selection costs: arms in turn in one process, and what the same time buys without one.

Beside the arms of equal steps, two trainings by chance and on everything that go on, epoch by
epoch, for as much processor time as the selection from one look took.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks.classification import tasks
from benchmarks.selection.cell import BATCH, KEPT, Experiment, Setting, judged

PRICE = "price: "  # how these cells' names begin
ONE_LOOK = "online 1, one look"
STEPS = ("random", "loss", "full", ONE_LOOK, "online 1, rounds 1")
TIMED = {"random, equal time": KEPT, "full, equal time": BATCH}


def measure(key: str) -> dict[str, Any]:
    """Test loss, test accuracy, processor seconds and steps by arm."""
    experiment = Experiment(Setting.of(key))
    everything = torch.arange(len(experiment.data.labels))
    trainings: dict[str, Callable[[], tuple[nn.Module, float]]] = {
        "random": partial(experiment.online, "random"),
        "loss": partial(experiment.online, "loss"),
        "full": lambda: (experiment.plain(everything, BATCH), experiment.data.noise),
        ONE_LOOK: partial(experiment.online, "value", rounds=None),
        "online 1, rounds 1": partial(experiment.online, "value", rounds=1),
    }
    experiment.online("random")  # what is done once in a process
    found: dict[str, Any] = {}
    for name in STEPS:
        began = process_time()
        model, wrong = trainings[name]()
        seconds = process_time() - began
        found[name] = judged(experiment, model) | {
            "wrong": wrong, "seconds": seconds, "steps": experiment.steps,
        }  # fmt: skip
    for name, rows in TIMED.items():
        began = process_time()
        model, steps = for_seconds(experiment, rows, found[ONE_LOOK]["seconds"])
        found[name] = judged(experiment, model) | {
            "wrong": experiment.data.noise, "seconds": process_time() - began, "steps": steps,
        }  # fmt: skip
    return {"arms": found}


def for_seconds(experiment: Experiment, rows: int, seconds: float) -> tuple[nn.Module, int]:
    """A plain training on batches of that many rows until the processor time is over."""
    began, steps = process_time(), 0
    model, optimizer = experiment.start()
    generator = torch.Generator().manual_seed(experiment.setting.seed)
    while True:
        order = torch.randperm(len(experiment.data.labels), generator=generator)
        for ids in order.split(rows):
            if process_time() - began >= seconds:
                return model, steps
            tasks.loss_fn(model, experiment.data.fetch(ids)).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
