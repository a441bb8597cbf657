"""One cell: all methods in turn on the same batches, again and again; then the memory of each.

Times are compared within one round, so that what else the machine does hits all methods alike. A
round is one step, and on a GPU a few in a row. Memory is measured in a process of its own for each
method: the highest resident size over what was resident before the model was built (on a GPU, the
allocator's own peak).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.overhead.methods import EXACT, PROFILED, REFERENCE, Method, Size, methods_of
from benchmarks.overhead.parts import on_the_clock

ROUNDS, WARM_UP = 10, 8  # the contraction's first steps are dense, then ranks are on trial
STRETCH = 4  # steps of a round on a GPU, which the host is ahead of but for the last
STEPS, FIRST_ID = 6, 1_000_000  # steps that are taken apart, and ids of their own for them


def measure(key: str, peer: str | None = None) -> dict[str, Any]:
    """Times, memory and agreement of every method at this size; None for what does not fit.

    Args:
        key: the size's.
        peer: a further method, `module:Class`.
    """
    size, device = Size.of(key), _device()
    torch.backends.cuda.matmul.allow_tf32 = size.precision == "bf16"
    kinds = methods_of(peer)
    groups = [list(kinds)]
    if size.apart:
        groups = [[REFERENCE, name] for name in kinds if name != REFERENCE]
    found: dict[str, Any] = dict.fromkeys(kinds)
    values: dict[str, dict[int, float]] = {}
    for names in groups:
        try:
            _measure_side_by_side(size, device, {n: kinds[n] for n in names}, found, values)
        except torch.OutOfMemoryError:
            print(f"  {names[-1]} does not fit")
    for name, one in found.items():
        if one is not None:
            told = {} if kinds[name].another_loss else values[name]
            one["r_with_exact"] = _agreement(size, told, values.get(EXACT, {}))
            one["peak_bytes"] = _peak_in_own_process(key, name, peer)
    return found


def _measure_side_by_side(
    size: Size,
    device: torch.device,
    kinds: dict[str, type[Method]],
    found: dict[str, Any],
    values: dict[str, dict[int, float]],
) -> None:
    methods = {name: kind(size, device) for name, kind in kinds.items()}
    seconds = _times(size, device, methods)
    for name, method in methods.items():
        values[name] = method.values()
        ratio = [t / r for t, r in zip(seconds[name], seconds[REFERENCE], strict=True)]
        found[name] = {"seconds": seconds[name], "ratio": ratio}
        if name in PROFILED:
            found[name]["parts"] = _parts(size, device, method)
    for method in methods.values():
        method.detach()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _times(size: Size, device: torch.device, methods: dict[str, Method]) -> dict[str, list[float]]:
    sequences, _ = size.text()
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    stretch = STRETCH if device.type == "cuda" else 1
    for turn in range(WARM_UP + ROUNDS):
        steps: list[tuple[range, torch.Tensor]] = []
        for number in range(turn * stretch, (turn + 1) * stretch):
            rows = rng.choice(len(sequences), size.batch, replace=False)
            ids = range(number * size.batch, (number + 1) * size.batch)
            steps.append((ids, sequences[torch.from_numpy(rows)].to(device)))
        for name, method in methods.items():
            _wait(device)
            began = time.perf_counter()
            for ids, batch in steps:
                method.step(ids, batch)
            _wait(device)
            if turn >= WARM_UP:
                seconds[name].append((time.perf_counter() - began) / stretch)
    return seconds


def _parts(size: Size, device: torch.device, method: Method) -> dict[str, float]:
    """Seconds a step in each part of the attribution, over a few more steps."""
    sequences, _ = size.text()
    with on_the_clock() as seconds:
        for turn in range(STEPS):
            rows = slice(turn * size.batch, (turn + 1) * size.batch)
            ids = range(FIRST_ID + rows.start, FIRST_ID + rows.stop)
            method.step(ids, sequences[rows].to(device))
        _wait(device)
    return {part: total / STEPS for part, total in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _agreement(size: Size, values: dict[int, float], exact: dict[int, float]) -> list[float]:
    """Pearson's R with the exact contraction within each step; ids count through the steps."""
    if not values or not exact:  # the exact one may not have fitted
        return []
    a = np.array([values[i] for i in sorted(exact)]).reshape(-1, size.batch)
    b = np.array([exact[i] for i in sorted(exact)]).reshape(-1, size.batch)
    return [float(np.corrcoef(x, y)[0, 1]) for x, y in zip(a, b, strict=True)]


def _peak_in_own_process(key: str, name: str, peer: str | None) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.overhead.cell",
        key,
        name,
        *([peer] if peer else []),
    ]
    # large tensors go back to the system at once, so that the resident size is what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak: int = json.loads(printed.stdout.splitlines()[-1])
    return peak


def _peak(key: str, name: str, peer: str | None = None) -> int:
    """Bytes at the highest point of five steps, over what was there before the model.

    A miniature comes first, so that libraries are loaded and loops compiled already.
    """
    size, device, kind = Size.of(key), _device(), methods_of(peer)[name]
    _five_steps(kind, replace(size, layers=1, width=64, batch=2, tokens=16), device)
    gc.collect()
    before = _resident("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _five_steps(kind, size, device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident("VmHWM") - before


def _five_steps(kind: type[Method], size: Size, device: torch.device) -> None:
    sequences, _ = size.text()
    method = kind(size, device)
    for turn in range(5):
        rows = slice(turn * size.batch, (turn + 1) * size.batch)
        method.step(range(rows.start, rows.stop), sequences[rows].to(device))
    method.detach()


def _resident(what: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_peak(*sys.argv[1:])))
