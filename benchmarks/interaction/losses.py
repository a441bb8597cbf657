"""Losses in which samples interact, each over rows of a batch, and data and a model for it.

A loss is (total, count): what a trainer minimises is total / count. Leaving rows out of the total
alone keeps what the others' terms weigh, as it is in a step's gradient; dividing by the remaining
count as well is what the trainer's own line would do with fewer rows.

Letters: B samples, I inputs, O outputs, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Net = Callable[[Tensor], Tensor]
INPUTS, CLASSES, PIXELS = 8, 3, 16


class Task(NamedTuple):
    """A loss, what it is called on a page, its model, data of so many rows, options of attach."""

    shown: str
    loss: Callable[[Net, Batch], tuple[Tensor, int]]
    build: Callable[[], nn.Sequential]
    data: Callable[[torch.Generator, int], Batch]
    options: Mapping[str, Any] = {}


def network(outputs: int) -> nn.Sequential:
    """A network of one hidden layer."""
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, outputs))


def normalized(*, bias: bool) -> nn.Sequential:
    """The same with BatchNorm, after a layer with or without the bias that BatchNorm takes off."""
    first = nn.Linear(INPUTS, 16, bias=bias)
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, CLASSES))


def cross_entropy(net: Net, batch: Batch) -> tuple[Tensor, int]:
    """No interaction but for what is inside the model: the control, and BatchNorm's loss."""
    return F.cross_entropy(net(batch[0]), batch[1], reduction="sum"), len(batch[1])


def info_nce(net: Net, batch: Batch) -> tuple[Tensor, int]:
    """Two views of each sample; the other samples' second views are its negatives."""
    first, second = (F.normalize(net(view), dim=1) for view in batch)
    scores_BB = first @ second.T / 0.2
    return F.cross_entropy(scores_BB, torch.arange(len(first)), reduction="sum"), len(first)


def batch_hard(net: Net, batch: Batch) -> tuple[Tensor, int]:
    """Soft-margin triplets of the furthest positive and the nearest negative in the batch."""
    out, labels = net(batch[0]), batch[1]
    squared_BB = (out[:, None] - out[None]).square().sum(-1)
    distances_BB = (squared_BB + 1e-12).sqrt()
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    usable = positive.any(1) & (~same).any(1)
    furthest = distances_BB.masked_fill(~positive, -torch.inf).amax(1)[usable]
    nearest = distances_BB.masked_fill(same, torch.inf).amin(1)[usable]
    return F.softplus(furthest - nearest).sum(), int(usable.sum())


def cox(net: Net, batch: Batch) -> tuple[Tensor, int]:
    """The negative log partial likelihood: each event against all that are still at risk."""
    risk, times, events = net(batch[0])[:, 0], batch[1], batch[2]
    at_risk_BB = times[None] >= times[:, None]
    sums = risk[None].masked_fill(~at_risk_BB, -torch.inf).logsumexp(1)
    return ((sums - risk) * events).sum(), int(events.sum())


def batch_dice(net: Net, batch: Batch) -> tuple[Tensor, int]:
    """One Dice loss of all the batch's pixels; as a total it counts once per sample."""
    p_BP, wanted_BP = net(batch[0]).sigmoid(), batch[1]
    dice = 1 - (2 * (p_BP * wanted_BP).sum() + 1) / (p_BP.sum() + wanted_BP.sum() + 1)
    return dice * len(p_BP), len(p_BP)


def _classes(generator: torch.Generator, rows: int) -> Batch:
    """Rows by turns of three classes, around three centres."""
    labels = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    noise = torch.randn(rows, INPUTS, generator=generator)
    return (centres[labels] + noise).double(), labels


def _views(generator: torch.Generator, rows: int) -> Batch:
    x, _ = _classes(generator, rows)
    first, second = (torch.randn(x.shape, generator=generator).double() for _ in range(2))
    return x + 0.5 * first, x + 0.5 * second


def _survival(generator: torch.Generator, rows: int) -> Batch:
    """Times that shorten with a linear risk, a third of them censored."""
    x = torch.randn(rows, INPUTS, generator=generator).double()
    noise = torch.randn(rows, generator=generator).double()
    return x, (-x[:, 0] + x[:, 1] + noise).exp(), (torch.arange(rows) % 3 > 0).double()


def _masks(generator: torch.Generator, rows: int) -> Batch:
    """Pixels wanted where a random linear map of the input is high; samples of unequal area."""
    x = torch.randn(rows, INPUTS, generator=generator).double()
    mapped = x @ torch.randn(INPUTS, PIXELS, generator=generator).double() - 1 + x[:, :1]
    return x, (mapped > 0).double()


TASKS = {
    "cross-entropy": Task(
        "cross-entropy (control: nothing interacts)", cross_entropy,
        lambda: network(CLASSES), _classes,
    ),
    "batch-norm": Task(
        "BatchNorm in training mode", cross_entropy, lambda: normalized(bias=False), _classes
    ),
    "batch-norm-bias": Task(
        "BatchNorm after a layer with a bias", cross_entropy,
        lambda: normalized(bias=True), _classes,
    ),
    "batch-norm-smoothed": Task(
        "the same, `smoothed_steps=1000`", cross_entropy,
        lambda: normalized(bias=True), _classes, {"smoothed_steps": 1000},
    ),
    "info-nce": Task("InfoNCE, in-batch negatives", info_nce, lambda: network(4), _views),
    "batch-hard": Task("batch-hard triplets", batch_hard, lambda: network(4), _classes),
    "cox": Task("Cox partial likelihood", cox, lambda: network(1), _survival),
    "batch-dice": Task("batch Dice", batch_dice, lambda: network(PIXELS), _masks),
}  # fmt: skip
