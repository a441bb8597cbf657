"""Many small parameters, where calls cost more than elements: a step beside a plain one.

    python -m benchmarks.overhead.many

Two models: 2,000 parameters of 20 elements, and 500 layers of 20 x 20. Times are of the process's
own CPU, one thread, the smallest of some steps, after the first ones.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun

WIDTH, ROWS, CLASSES, STEPS, FIRST = 20, 16, 5, 12, 4


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


def seconds(build: type[nn.Module], *, attached: bool) -> float:
    """Of one step."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = torch.randn(4 * ROWS, WIDTH), torch.randint(CLASSES, (4 * ROWS,))
    attribution = None
    if attached:
        utility = inrun.Utility(loss_fn, (x[ROWS:], y[ROWS:]))
        attribution = inrun.attach(
            model, optimizer, utility, options=inrun.Options(smoothed_steps=0, progress=False)
        )
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        if attribution is None:
            loss_fn(model, (x[:ROWS], y[:ROWS])).backward()
        else:
            with attribution.batch(range(ROWS)):
                loss_fn(model, (x[:ROWS], y[:ROWS])).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    if attribution is not None:
        attribution.detach()
    return min(times[FIRST:])


def main() -> None:
    """Prints a line a model."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    for build in (Scales, Layers):
        plain, scored = seconds(build, attached=False), seconds(build, attached=True)
        found = {"model": build.__name__, "plain": plain, "scored": scored, "ratio": scored / plain}
        print(json.dumps({k: v if isinstance(v, str) else round(v, 4) for k, v in found.items()}))


if __name__ == "__main__":
    main()
