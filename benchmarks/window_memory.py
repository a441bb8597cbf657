"""`python -m benchmarks.window_memory`: memory of windows beside other ways to attribute.

Each way is a process of its own: a Llama of 6 layers and width 512 with a vocabulary of 49,152
(that of SmolLM2, tied) trains with activation checkpointing on sequences of 256 tokens, four at a
time and one to judge by. The highest memory is that of single steps over what was resident before
the model, once a miniature has loaded all libraries: the first (scored one by one, and checked) and
the median of those behind the tenth, when first checks are over.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.overhead.methods import Size
from benchmarks.results_file import RESULTS, environment
from benchmarks.validation_memory import memory

SIZE = Size(layers=6, width=512, batch=4, tokens=256, validation=1, kind="llama", vocabulary=49_152)
STEPS, WARM = 16, 10
WAYS: dict[str, dict[str, object] | None] = {
    "plain + validation": None,
    "hold": {},
    "stream": {"options": inrun.Options(capture="stream", progress=False)},
    "window": {"scoring": inrun.Window(2, exact=1, books=False)},
    "window with books": {"scoring": inrun.Window(2, exact=1)},
}
STEADY = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
"""Large tensors go back to the system at once, so that what is counted is in use."""


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    """Next-token cross-entropy, mean over samples and tokens."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def peaks(way: str) -> list[int]:
    """Bytes at the highest point of each step, over those before the model."""
    torch.set_num_threads(1)
    _steps(way, replace(SIZE, layers=1, width=64, tokens=16), 4)
    gc.collect()
    before = memory("VmRSS")
    return [peak - before for peak in _steps(way, SIZE, STEPS)]


def _steps(way: str, size: Size, count: int) -> list[int]:
    """The process's bytes at the highest point of each step."""
    model = size.model()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    rows = torch.randint(0, size.vocabulary, (size.batch + 1, size.tokens))
    batch, held = rows[: size.batch], rows[size.batch :]
    settings, attribution = WAYS[way], None
    if settings is not None:
        given = {"options": inrun.Options(progress=False), **settings}
        attribution = inrun.attach(model, optimizer, inrun.Utility(loss_fn, held), **given)
    found = []
    for _ in range(count):
        Path("/proc/self/clear_refs").write_text("5")  # the highest point is this step's
        if attribution is None:
            loss_fn(model, batch).backward()
        else:
            with attribution.batch(range(size.batch)):
                loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if attribution is None:
            torch.autograd.grad(loss_fn(model, held), list(model.parameters()))
        found.append(memory("VmHWM"))
    if attribution is not None:
        attribution.detach()
    return found


def main() -> None:
    """Writes `results/window_memory.json` and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=WAYS, help="this way, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(peaks(given.one)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.window_memory", "--one", way]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **STEADY}
        )
        each = json.loads(done.stdout.splitlines()[-1])
        found[way] = {"first": each[0], "later": int(median(each[WARM:])), "highest": max(each)}
        print(way, found[way], flush=True)
    content = {"bytes": found, "environment": environment()}
    (RESULTS / "window_memory.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
