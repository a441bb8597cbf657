"""One model and one number of queries: time and memory of the sweep, in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch

import inrun
from benchmarks.influence.cell import Experiment
from benchmarks.influence.cell import Setting as Training
from benchmarks.keyed import Keyed

COUNTS = (1, 8, 64, 500)
STEPS = 16
TASKS = ("mlp-gelu", "gpt2")


@dataclass(frozen=True)
class Setting(Keyed):
    """A task of `benchmarks.influence`, and how many queries are asked at once."""

    task: str
    queries: int


def measure(key: str) -> dict[str, Any]:
    """The cell, in a fresh process: the highest resident size is its own."""
    command = [sys.executable, "-m", "benchmarks.queries.cell", key]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_this_process(setting: Setting) -> dict[str, Any]:
    """Seconds of processor time of the sweep, and by how many bytes the process grew."""
    experiment = Experiment(Training(setting.task, 1e-4, 0, STEPS))
    first = experiment.task.samples
    rows = [torch.tensor([first + i % experiment.task.queries]) for i in range(setting.queries)]
    targets = {f"query {i}": experiment.task.fetch(row) for i, row in enumerate(rows)}
    utility = inrun.Utility(experiment.task.judge, targets=targets)
    run = experiment.train()
    assert run is not None
    inrun.lookahead(run, experiment.mean)  # what is made once
    before, began = _peak(), process_time()
    inrun.lookahead(run, utility)
    seconds = process_time() - began
    return {
        "seconds": seconds,
        "grown_bytes": _peak() - before,
        "parameters": sum(p.numel() for p in run.finished().parameters()),
        "steps": len(run.steps),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(in_this_process(Setting.of(sys.argv[1]))))
