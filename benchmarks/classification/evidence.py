"""What is known of a split's samples after training on it: losses, margins, and values by method.

Every method sees the same training run, bit for bit. Letters: N samples, E epochs, K classes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

import inrun
from benchmarks.classification import tasks
from benchmarks.classification.tasks import Split

LOOK_AHEAD = "look-ahead"
PAID_OUT = "path, paid out"
WINDOW = 20  # steps that momentum is paid out for


@dataclass(frozen=True)
class Evidence:
    """What training met: `losses` and `margins` (N, E), mean class `probabilities` (N, K).

    `visits` by method, one column per class where that was asked for.
    """

    losses: np.ndarray
    margins: np.ndarray
    probabilities: np.ndarray
    visits: dict[str, pa.Table]
    seconds: dict[str, float]


def batches(split: Split, rows: Tensor, seed: int) -> Iterator[Tensor]:
    """Every epoch's batches of row numbers, in a fresh order each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(split.recipe.epochs):
        yield from rows[torch.randperm(len(rows), generator=generator)].split(split.recipe.batch)


def start(split: Split, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimizer before the first step."""
    torch.manual_seed(seed)
    model = split.recipe.build().train()
    return model, tasks.optimizer_of(model, split.recipe)


def trained(split: Split, rows: Tensor, seed: int, labels: Tensor | None = None) -> nn.Module:
    """Plain training on some of the rows, with other labels if they are given."""
    model, optimizer = start(split, seed)
    labels = split.labels if labels is None else labels
    for ids in batches(split, rows, seed):
        inputs = tuple(t[ids] for t in split.inputs)
        tasks.loss_fn(model, (inputs, labels[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def gather(split: Split, seed: int, methods: Mapping[str, bool]) -> Evidence:
    """Trains once a method, and keeps what training itself shows.

    Args:
        split: the data.
        seed: of start and order.
        methods: by name, whether with one target a class; else with their mean as the only one.
    """
    visits, seconds = {}, {}
    for method, by_class in methods.items():
        began = time.perf_counter()
        utility = inrun.Utility(tasks.weighted_loss, split.whole)
        if by_class:
            utility = inrun.Utility(tasks.loss_fn, targets=split.targets)
        with tempfile.TemporaryDirectory() as folder:
            seen = _run(split, seed, method, utility, Path(folder))
        seconds[method] = time.perf_counter() - began
        visits[method], losses, margins, probabilities = seen
    return Evidence(losses, margins, probabilities, visits, seconds)


def _run(
    split: Split, seed: int, method: str, utility: inrun.Utility, folder: Path
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    model, optimizer = start(split, seed)
    if method == LOOK_AHEAD:
        watch = inrun.record(model, optimizer, tasks.losses, split.fetch)
    else:
        watch = inrun.attach(
            model,
            optimizer,
            utility,
            store=folder / "run",
            estimator="path" if method == PAID_OUT else method,
            momentum_window=WINDOW if method == PAID_OUT else 0,
            options=inrun.Options(progress=False),
        )
    n, epochs = split.recipe.training, split.recipe.epochs
    losses, margins = np.zeros((n, epochs)), np.zeros((n, epochs))
    probabilities = np.zeros((n, len(split.names)))
    seen = np.zeros(n, int)
    for ids in batches(split, torch.arange(n), seed):
        with ExitStack() as blocks:
            blocks.enter_context(watch.batch(ids.tolist()))
            inputs, y = split.fetch(ids)
            logits = model(*inputs)
            found = torch.nn.functional.cross_entropy(logits, y, reduction="none")
            found.mean().backward()
        rows = ids.numpy()
        losses[rows, seen[rows]] = found.detach().numpy()
        margins[rows, seen[rows]] = _margins(logits.detach(), y).numpy()
        probabilities[rows] += logits.detach().softmax(1).numpy() / epochs
        seen[rows] += 1
        optimizer.step()
        optimizer.zero_grad()
    if isinstance(watch, inrun.Attribution):
        watch.detach()
        return watch.visits(), losses, margins, probabilities
    values = inrun.lookahead(watch.finish(), utility).visits()
    return values, losses, margins, probabilities


def _margins(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """The label's logit less the largest other one, as Area Under the Margin takes it."""
    own = logits_BK.gather(1, y_B[:, None])
    others = logits_BK.scatter(1, y_B[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)
