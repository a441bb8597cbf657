"""Cells: what a training leaves and takes, its time beside plain training, and exact values.

Each is measured in a process of its own, so that the highest resident size is its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.smollm.exact import agreement_with_exact
from benchmarks.smollm.halves import SEEDS, halves
from benchmarks.smollm.training import Size, trainer
from inrun.ledger import ENTRIES, residual_shares

TURNS, WARM_UP = 10, 5  # steps, of which the first are not counted


def measure(key: str) -> dict[str, Any]:
    """The cell `kind: way`."""
    command = [sys.executable, "-m", "benchmarks.smollm.cell", *key.split(": ")]
    # large tensors go back to the system at once, so that the resident size is what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def trained(kind: str, size: Size, *, attributed: bool) -> dict[str, Any]:
    """One training: a digest of its weights, and the books where there are any."""
    with tempfile.TemporaryDirectory() as folder:
        made, callback = trainer(folder, kind, size, attributed=attributed)
        made.train()
    found: dict[str, Any] = {"weights": _digest(made.model)}
    if callback is not None:
        attribution = callback.attribution
        ledger, values = attribution.ledger(), attribution.values()
        found |= {
            "covered": attribution.covered,
            "residual_shares": residual_shares(ledger).tolist(),
            "samples": values.num_rows,
            "visits": sum(values["visits"].to_pylist()),
            "ledger": ledger.select(
                ["estimator", "opening_loss", *ENTRIES, "residual"]
            ).to_pydict(),
        }
    return found


def _digest(model: torch.nn.Module) -> str:
    """Of all bits of the trained parameters and of the others."""
    found = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(p.detach().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def in_turns(kind: str, size: Size, warm_up: int = WARM_UP) -> dict[str, Any]:
    """Processor time of every step, plain training and attributed training step about."""
    from transformers import TrainerCallback

    names = ("plain", "attributed")
    turns = {name: threading.Semaphore(name == "plain") for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    failed: list[BaseException] = []

    class Turn(TrainerCallback):  # type: ignore[misc]
        """Waits for its turn at the beginning of a step; hands it on where the next would begin."""

        def __init__(self, own: str, other: str):
            self.own, self.other, self.began = own, other, 0.0

        def hand_on(self) -> None:
            if self.began:
                seconds[self.own].append(time.process_time() - self.began)
                turns[self.other].release()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.hand_on()
            turns[self.own].acquire()
            self.began = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.hand_on()

    def run(made: Any, other: str) -> None:
        try:
            made.train()
        except BaseException as error:
            failed.append(error)
            turns[other].release()

    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for own, other in (names, names[::-1]):
            made, _ = trainer(folder, kind, size, attributed=own == "attributed")
            made.add_callback(Turn(own, other))
            threads.append(threading.Thread(target=run, args=(made, other)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    counted = {name: times[warm_up:] for name, times in seconds.items()}
    return {"seconds": counted, "warm_up": {name: t[:warm_up] for name, t in seconds.items()}}


WAYS: dict[str, Callable[[str, Size], dict[str, Any]]] = {
    "plain": lambda kind, size: trained(kind, size, attributed=False),
    "attributed": lambda kind, size: trained(kind, size, attributed=True),
    "in turns": lambda kind, size: in_turns(kind, size._replace(steps=TURNS)),
    "exact": agreement_with_exact,
    **{f"halves, seed {seed}": partial(halves, seed=seed) for seed in SEEDS},
}
OF_ADAPTERS = tuple(way for way in WAYS if way.startswith("halves"))


def main(kind: str, way: str) -> None:
    """Prints what a cell found, with the highest resident size of this process in bytes."""
    torch.set_num_threads(1)
    found = WAYS[way](kind, Size())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found | {"peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
