"""Results on disk: cells that are kept one by one, so that a run that was cut off goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import inrun

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "inrun": inrun.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
    }


def environments(stored: dict[str, Any]) -> str:
    """How many cells, at which commits, in a line for a page; the machine is on that of all."""
    others = len({cell["environment"]["commit"] for cell in stored.values()}) - 1
    at = next(reversed(stored.values()))["environment"]["commit"]
    more = f" and {others} other{'s' * (others > 1)}" if others else ""
    return f"{len(stored)} cells, commit {at}{more} ([machine](../benchmarks.md#every-number))"


def machines(stored: dict[str, Any]) -> str:
    """What the stored cells were measured on; more than one where they differ."""
    found = (cell["environment"] for cell in stored.values())
    return "; ".join(
        dict.fromkeys(
            f"PyTorch {e['torch']}, Python {e['python']}, {e['threads']} of {e['cores']} cores, "
            f"{e['gpu'] or 'no GPU'}"
            for e in found
        )
    )


def commits(stored: dict[str, Any]) -> str:
    """'commit a, b': those that the stored cells were measured at."""
    return "commit " + ", ".join(
        dict.fromkeys(cell["environment"]["commit"] for cell in stored.values())
    )


def _commit() -> str:
    """The commit that was measured; `-dirty` only where code differs, not for results since."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )

    commit = git("describe", "--always").stdout.strip()
    code = git("diff", "--quiet", "HEAD", "--", "src", "benchmarks", ":!benchmarks/results")
    return (commit + "-dirty" * (code.returncode == 1)) or "unknown"


def cells(
    name: str,
    keys: Iterable[str],
    measure: Callable[[str], Any],
    *,
    fresh: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Measures each key that is not on disk yet, saving after each; returns all of them.

    Args:
        name: of the file under `results/`.
        keys: the cells' names.
        measure: (key) -> what JSON can hold; a function of a module, for other processes to find.
        fresh: forget what is on disk.
        processes: how many cells to measure side by side, each on one thread.
    """
    path, keys = RESULTS / f"{name}.json", list(keys)
    measured_with = environment()
    found: dict[str, Any] = {}
    if path.exists() and not fresh:
        found = json.loads(path.read_text())["cells"]
    missing = [key for key in keys if key not in found]
    for key, (seconds, result) in _measured(missing, measure, processes):
        print(f"{name}: {key}: {seconds:.0f} s", flush=True)
        facts = measured_with | {"threads": 1, "seconds": round(seconds, 1)}
        found[key] = {"environment": facts, "result": result}
        write_results(name, found)
    return {key: found[key]["result"] for key in keys}


def write_results(name: str, cells: dict[str, Any]) -> None:
    """Writes a file of results: one line per cell, numbers with six significant digits."""
    RESULTS.mkdir(exist_ok=True)
    lines = [
        f"{json.dumps(key)}:{json.dumps(_rounded(cell), separators=(',', ':'))}"
        for key, cell in cells.items()
    ]
    text = ",\n".join(lines)
    (RESULTS / f"{name}.json").write_text(
        f'{{"benchmark":{json.dumps(name)},"cells":{{\n{text}\n}}}}\n'
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def _measured(
    keys: list[str], measure: Callable[[str], Any], processes: int
) -> Iterator[tuple[str, tuple[float, Any]]]:
    """(key, (seconds, result)) as they come in."""
    fresh_start = multiprocessing.get_context("spawn")  # forked processes share thread pools
    with ProcessPoolExecutor(
        processes, mp_context=fresh_start, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {pool.submit(_timed, measure, key): key for key in keys}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _timed(measure: Callable[[str], Any], key: str) -> tuple[float, Any]:
    began = time.perf_counter()
    result = measure(key)
    return time.perf_counter() - began, result
