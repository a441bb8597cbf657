"""One long run: digits, a small classifier, AdamW, a store, a checkpointed state now and then.

The run is cut into ten stretches. Of each is kept: the median processor time of a step, the
process's memory at its end (resident set), and how many tensors are alive.
"""

from __future__ import annotations

import gc
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import inrun

STRETCHES = 10
BATCH = 16
STATE_EVERY = 1000


def measure(key: str) -> dict[str, Any]:
    """Runs `capture steps`."""
    capture, steps = key.split()
    with tempfile.TemporaryDirectory() as folder:
        return _run(capture, int(steps), Path(folder) / "run")


def _run(capture: str, steps: int, store: Path) -> dict[str, Any]:
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    utility = inrun.Utility(loss_fn, (x[1500:1532], y[1500:1532]))
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        store=store,
        options=inrun.Options(capture=capture, progress=False),
    )
    stretches, times = [], []
    for step in range(steps):
        began = time.process_time()
        rows = torch.randint(1500, (BATCH,))
        with attribution.batch(rows):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
        if (step + 1) % STATE_EVERY == 0:
            attribution.state_dict()
        if (step + 1) % (steps // STRETCHES) == 0:
            stretches.append(_stretch(step + 1, times))
            times = []
    attribution.detach()
    run = inrun.load(store)
    return {
        "stretches": stretches,
        "steps_stored": run.ledger().num_rows,
        "visits_stored": run.visits().num_rows,
        "visits_made": steps * BATCH,
        "values_agree": run.values()["visits"].equals(attribution.values()["visits"]),
        "store_megabytes": sum(p.stat().st_size for p in store.rglob("*.parquet")) / 2**20,
        "residual_share": attribution.residual_share,
        "overhead": attribution.overhead,
    }


def _stretch(step: int, times: list[float]) -> dict[str, Any]:
    gc.collect()
    return {
        "step": step,
        "milliseconds": 1e3 * statistics.median(times),
        "megabytes": _resident() / 2**20,
        "tensors": sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects()),
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
