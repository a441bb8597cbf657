"""What each method costs beside one plain training: time, memory, disk."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import inrun
from benchmarks.influence.cell import CARRY, Experiment, Setting

TRAINING = "training"


def cost(setting: Setting, rounds: int = 3) -> dict[str, Any]:
    """Processor times as multiples of plain training, interleaved; memory; disk."""
    experiment = Experiment(setting)
    run = experiment.train()
    assert run is not None
    jobs: dict[str, Callable[[], Any]] = {"training, recorded": experiment.train}
    for name, method in (experiment.methods(run) | experiment.carried_methods(run)).items():
        jobs[name] = lambda method=method: method(experiment.mean)
    every = lambda: inrun.lookahead(run, experiment.mean, push="finite", carry=CARRY)  # noqa: E731
    plain = lambda: experiment.train(record=False)  # noqa: E731
    times = _interleaved(plain, jobs, rounds)
    slow = _interleaved(plain, {"look-ahead, carried push, all samples": every}, 1)
    with tempfile.TemporaryDirectory() as folder:
        kept = experiment.train(Path(folder) / "run")
        assert kept is not None
        disk = kept.bytes_on_disk
    return {
        "seconds_of_training": times.pop(TRAINING),
        "times": times | {name: slow[name] for name in slow if name != TRAINING},
        "growth_mb": {
            what: _peak(setting, what) for what in ("training", "recorded", "look-ahead")
        },
        "disk_mb": disk / 1e6,
        "parameters": sum(p.numel() for p in run.finished().parameters()),
    }


def _interleaved(
    plain: Callable[[], Any], jobs: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Each job's multiple of plain training, which runs before it; and training's own seconds."""
    base: list[float] = []
    multiples: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            base.append(_seconds(plain))
            multiples[name].append(_seconds(job) / base[-1])
    found = {name: float(np.median(some[1:])) for name, some in multiples.items()}  # one warms up
    return {TRAINING: float(np.median(base[len(jobs) :])), **found}


def _seconds(job: Callable[[], Any]) -> float:
    """Of this process's processor, one thread: what else the machine does hardly counts."""
    begun = time.process_time()
    job()
    return time.process_time() - begun


def _peak(setting: Setting, what: str) -> float:
    """By how many MB a process grows at most that does only this."""
    command = [sys.executable, "-m", "benchmarks.influence.cost", what, setting.key]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(setting: Setting, what: str) -> None:
    """Does one thing and prints by how many MB this process grew at most (Linux)."""
    experiment = Experiment(setting)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was loading the data
    before = _status("VmRSS")
    run = experiment.train(record=what != "training")
    if what == "look-ahead":
        assert run is not None
        inrun.lookahead(run, experiment.mean)
    print(_status("VmHWM") - before)


def _status(name: str) -> float:
    """A figure of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1000


if __name__ == "__main__":
    print_peak(Setting.of(sys.argv[2]), sys.argv[1])
