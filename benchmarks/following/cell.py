"""One size: steps of two versions and of plain training, in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import ROOT

BEFORE = "418f058"  # the last version without owners
ROUNDS = 30
WORKER = ROOT / "following" / "worker.py"


class Side:
    """A process that trains with one version, and times steps when asked."""

    def __init__(self, size: str, kind: str, source: Path):
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), size, kind], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.state = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def seconds(self, steps: int) -> float:
        """Mean process time of a step."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def measure(size: str) -> dict[str, Any]:
    """Step times of plain training, the version before, and this one, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", BEFORE, "src"], cwd=ROOT.parent, capture_output=True, check=True
        )
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        here = ROOT.parent / "src"
        sides = {
            "plain": Side(size, "plain", here),
            "before": Side(size, "scored", Path(folder) / "src"),
            "now": Side(size, "scored", here),
        }
        try:
            return _in_turns(sides)
        finally:
            for side in sides.values():
                side.end()


def _in_turns(sides: dict[str, Side]) -> dict[str, Any]:
    able = {name: side for name, side in sides.items() if side.state == "ready"}
    steps = {name: max(1, round(0.15 / side.seconds(3))) for name, side in able.items()}
    times: dict[str, list[float]] = {name: [] for name in able}
    for number in range(ROUNDS):
        order = list(able) if number % 2 == 0 else list(able)[::-1]
        for name in order:
            times[name].append(able[name].seconds(steps[name]))
    found: dict[str, Any] = {name: float(np.median(t)) for name, t in times.items()}
    for name in ("before", "plain"):
        if name in times and "now" in times:
            pairs = np.array(times["now"]) / np.array(times[name])
            found[f"now / {name}"] = [float(np.percentile(pairs, q)) for q in (50, 25, 75)]
    if "before" in times:
        pairs = np.array(times["before"]) / np.array(times["plain"])
        found["before / plain"] = [float(np.percentile(pairs, q)) for q in (50, 25, 75)]
    found["failed"] = {name: side.state for name, side in sides.items() if name not in able}
    return found
