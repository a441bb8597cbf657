"""`python -m benchmarks.import_time`: how long importing takes, beside importing torch alone.

Each round starts a fresh interpreter for each statement, in turn, so that a machine that is busy
for a while slows all of them; what is compared are the processor times of a round.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.results_file import environment, write_results

REFERENCE = "import torch"
STATEMENTS = (
    REFERENCE,
    "import inrun",
    "import inrun; inrun.attach",
    "import inrun; inrun.load",
)


def _seconds(statement: str) -> float:
    """Processor time of an interpreter that runs the statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def measure(rounds: int) -> dict[str, Any]:
    """Seconds by statement, a number a round; the first round warms the disk and is left out."""
    found: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(rounds + 1):
        for statement, seconds in found.items():
            seconds.append(_seconds(statement))
    return {statement: seconds[1:] for statement, seconds in found.items()}


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Each statement's time over that of importing torch, the median of the rounds' ratios."""
    torch = np.array(seconds[REFERENCE])
    return {name: float(np.median(np.array(s) / torch)) for name, s in seconds.items()}


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    found = ratios(cells["import"]["result"])
    return [
        (f"`{statement}`, processor time over that of `{REFERENCE}`", f"{ratio:.2f}", "")
        for statement, ratio in found.items()
        if statement != REFERENCE
    ]


def main() -> None:
    """Measures, prints and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    seconds = measure(parser.parse_args().rounds)
    cell = {"environment": environment() | {"threads": 1}, "result": seconds}
    write_results("import_time", {"import": cell})
    for statement, ratio in ratios(seconds).items():
        print(f"{statement:28} {np.median(seconds[statement]):.2f} s, {ratio:.2f} times torch")


if __name__ == "__main__":
    main()
