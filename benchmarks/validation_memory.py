"""`python -m benchmarks.validation_memory`: memory of a large validation set passed in parts.

Each size is a process of its own: an MLP of width 256 follows three steps with
`Utility(batch_size=1000)` of 1,000 and of 400,000 rows, and with all 400,000 at once. Counted is
the growth of the process from before it is attached, without the validation set itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.results_file import RESULTS, environment

PART, ROWS, WIDTH = 1000, 32, 256
SIZES = ((PART, PART), (400_000, PART), (400_000, None))  # rows, batch_size


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over the batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def memory(what: str) -> int:
    """Of this process in bytes, 'VmRSS' now, 'VmHWM' at its highest."""
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(what)).split()[1])


def growth(rows: int, part: int | None) -> int:
    """Bytes at the highest point of three steps, above those before it was attached."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(rows, 64), torch.randint(10, (rows,))
    before = memory("VmRSS")
    utility = inrun.Utility(loss_fn, (x, y), batch_size=part)
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    for _ in range(3):
        with attribution.batch(range(ROWS)):
            loss_fn(model, (x[:ROWS], y[:ROWS])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return memory("VmHWM") - before


def main() -> None:
    """Writes `results/validation_memory.json` and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, help="rows and batch_size (0: all), this once")
    given = parser.parse_args()
    if given.one:
        print(growth(given.one[0], given.one[1] or None))
        return
    found = {}
    for rows, part in SIZES:
        command = [sys.executable, "-m", "benchmarks.validation_memory", "--one", str(rows)]
        done = subprocess.run(
            [*command, str(part or 0)], check=True, capture_output=True, text=True
        )
        found[f"{rows} rows, batch_size {part}"] = int(done.stdout.splitlines()[-1])
    content = {"bytes": found, "environment": environment()}
    (RESULTS / "validation_memory.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
