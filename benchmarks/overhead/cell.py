"""One cell: a method beside plain training, step by step in turn; or the memory that it takes.

Both train on the same batches. Times are the process's own (on a GPU, of the clock once it is
done), and a ratio is that of a turn: a whole window, one step of other methods. Memory is measured
in a process of its own: the highest resident size over what was resident before the model was
built (on a GPU, the allocator's own peak).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.overhead.methods import Attributed, Method, Plain, Size, method_of

WARM_UP = 10  # first steps, which windows score one by one, too
TURNS = 5  # at least, and no fewer steps than ten
LARGE = 100_000_000  # parameters
LARGE_STEPS = 3  # of a model that takes seconds per step: turns, or one window


class Cell(NamedTuple):
    """`kind`: 'time' or 'memory'."""

    size: Size
    kind: str
    method: str

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return " | ".join((self.size.key, self.kind, self.method))

    @classmethod
    def of(cls, key: str) -> Cell:
        """The cell of a name."""
        size, kind, method = key.split(" | ")
        return cls(Size.of(size), kind, method)


def measure(key: str) -> Any:
    """A cell by its name: seconds and ratios by turn, or bytes; None for what does not fit."""
    cell = Cell.of(key)
    torch.backends.cuda.matmul.allow_tf32 = cell.size.precision == "bf16"
    if cell.kind == "memory":
        return _peak_in_own_process(key)
    try:
        return times(cell.size, method_of(cell.method))
    except torch.OutOfMemoryError:
        return None


def times(size: Size, kind: type[Method]) -> dict[str, Any]:
    """Seconds a step of each turn, and their ratios to plain steps on the same batches.

    `steps` are single steps' ratios: the one that closes a window, and those with a rare check,
    stand out among them.
    """
    device = _device()
    plain = Plain(size, device)
    large = sum(p.numel() for p in plain.model.parameters()) > LARGE
    method = _made(kind, size, device, exact=WARM_UP)
    batches = Batches(size, device)
    for _ in range(WARM_UP):
        method.step(*batches.next())
    timed(plain, *batches.next(), device)
    turns = max(TURNS, -(-10 // method.turn)) if method.turn < 10 else 4
    if large:
        turns = -(-LARGE_STEPS // method.turn)
    found: dict[str, list[float]] = {"plain": [], "seconds": [], "ratio": [], "steps": []}
    for _ in range(turns):
        pairs = []
        for _ in range(method.turn):
            ids, batch = batches.next()
            pairs.append([timed(each, ids, batch, device) for each in (plain, method)])
        alone, with_it = (sum(column) / method.turn for column in zip(*pairs, strict=True))
        found["plain"].append(alone)
        found["seconds"].append(with_it)
        found["ratio"].append(with_it / alone)
        found["steps"] += [own / other for other, own in pairs]
    method.detach()
    return found


def _made(kind: type[Method], size: Size, device: torch.device, exact: int) -> Method:
    """A method; windows score this many first steps one by one."""
    if issubclass(kind, Attributed):
        return kind(size, device, exact=exact)
    return kind(size, device)


class Batches:
    """Batches in turn, each with ids of its own."""

    def __init__(self, size: Size, device: torch.device):
        self._sequences, self._size, self._device = size.text()[0], size, device
        self._draw, self._count = torch.Generator().manual_seed(0), 0

    def next(self) -> tuple[range, torch.Tensor]:
        """(ids, rows)."""
        rows = torch.randint(len(self._sequences), (self._size.batch,), generator=self._draw)
        ids = range(self._count * self._size.batch, (self._count + 1) * self._size.batch)
        self._count += 1
        return ids, self._sequences[rows].to(self._device)


def timed(method: Method, ids: range, batch: torch.Tensor, device: torch.device) -> float:
    """Seconds of one step: the process's own, on a GPU of the clock."""
    now = time.perf_counter if device.type == "cuda" else time.process_time
    _wait(device)
    began = now()
    method.step(ids, batch)
    _wait(device)
    return now() - began


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_in_own_process(key: str) -> int:
    # large tensors go back to the system at once, so that the resident size is what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.overhead.cell", key]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak: int = json.loads(printed.stdout.splitlines()[-1])
    return peak


def _peak(key: str) -> int:
    """Bytes at the highest point of a few steps, over what was there before the model.

    A miniature comes first, so that libraries are loaded and loops compiled already. Windows begin
    with the second step: their first ones, scored one by one, take what every step takes.
    """
    size, device, kind = Cell.of(key).size, _device(), method_of(Cell.of(key).method)
    _steps(kind, replace(size, layers=1, width=64, batch=2, tokens=16), device, 5)
    gc.collect()
    before = _resident("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _steps(kind, size, device, min(12, max(4, kind.turn + 2)))
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident("VmHWM") - before


def _steps(kind: type[Method], size: Size, device: torch.device, count: int) -> None:
    method = _made(kind, size, device, exact=1)
    batches = Batches(size, device)
    for _ in range(count):
        method.step(*batches.next())
    method.detach()


def _resident(what: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1])))
