"""Small steps, where calls cost more than elements: a scored step beside a plain one.

    python -m benchmarks.overhead.many

Three models: 2,000 parameters of 20 elements; 500 layers of 20 x 20; the demo's network for digits
with ten targets and every validation row. Plain and scored steps take
turns; times are of the process's own CPU, one thread, after the first steps, the work of Python's
garbage collector among them, which comes in some steps only: so there are a median and a mean.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks.results_file import cells
from inrun.demo import _digits as digits

WIDTH, ROWS, CLASSES, STEPS, FIRST = 20, 16, 5, 20, 5


class Scales(nn.Module):
    """2,000 vectors, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        drawn = (torch.ones(WIDTH) + 0.01 * torch.randn(WIDTH) for _ in range(2000))
        self.scales = nn.ParameterList([nn.Parameter(t) for t in drawn])
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        for scale in self.scales:
            x = x * scale
        return self.out(x)


class Layers(nn.Module):
    """500 layers of 20 x 20."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(500)])
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        for layer in self.layers:
            x = x + 0.01 * layer(x)
        return self.out(x)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


class Parts(NamedTuple):
    """What a loop trains with: batches are (x, y), `targets` those of validation by name."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]
    targets: dict[str, tuple[Tensor, Tensor]]


def _of_rows(build: Callable[[], nn.Module]) -> Parts:
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(4 * ROWS, WIDTH), torch.randint(CLASSES, (4 * ROWS,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Parts(model, optimizer, (x[:ROWS], y[:ROWS]), {"all": (x[ROWS:], y[ROWS:])})


def _of_digits() -> Parts:
    torch.manual_seed(0)
    found, model = digits.load(0), digits.model()
    rows = slice(digits.BATCH)
    batch = found.images[rows], found.labels[rows]
    return Parts(model, digits.optimizer_of(model), batch, found.targets)


MODELS = {
    "2,000 x 20": partial(_of_rows, Scales),
    "500 layers of 20 x 20": partial(_of_rows, Layers),
    "the demo's digits, ten targets": _of_digits,
}


class Loop:
    """A model's training loop.

    Args:
        parts: what it trains with.
        kind: 'plain', 'validated' (each target's gradient after each step) or 'scored'.
    """

    def __init__(self, parts: Parts, kind: str):
        self.model, self.optimizer, self.batch, targets = parts
        self.attribution, self.validation = None, targets.values() if kind == "validated" else ()
        if kind == "scored":
            self.attribution = inrun.attach(
                self.model, self.optimizer, inrun.Utility(loss_fn, targets=targets),
                options=inrun.Options(smoothed_steps=0, progress=False),
            )  # fmt: skip

    def step(self) -> float:
        """Seconds of one step."""
        began = time.process_time()
        scored = contextlib.nullcontext()
        if self.attribution is not None:
            scored = self.attribution.batch(range(len(self.batch[0])))
        with scored:
            loss_fn(self.model, self.batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for batch in self.validation:
            torch.autograd.grad(loss_fn(self.model, batch), list(self.model.parameters()))
        return time.process_time() - began


def measure(key: str) -> dict[str, list[float]]:
    """Seconds of steps of each kind, in turn."""
    torch.set_num_threads(1)
    loops = {kind: Loop(MODELS[key](), kind) for kind in ("plain", "validated", "scored")}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for step in range(FIRST + STEPS):
        for name, loop in loops.items():
            spent = loop.step()
            if step >= FIRST:
                seconds[name].append(spent)
    return seconds


def main() -> None:
    """Measures what is not on disk yet, and prints a line per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    found = cells("many", MODELS, measure, fresh=parser.parse_args().fresh)
    for key in MODELS:
        for base in ("plain", "validated"):
            if base in found[key]:
                ratios = [
                    of(found[key]["scored"]) / of(found[key][base]) for of in (np.median, np.mean)
                ]
                print(
                    f"{key}: {ratios[0]:.2f} times a {base} step (median), {ratios[1]:.2f} (mean)"
                )


if __name__ == "__main__":
    main()
