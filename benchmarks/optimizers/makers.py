"""The optimizers of this benchmark, each at a rate at which it trains the two models."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import lion_pytorch
import pytorch_optimizer
import schedulefree
import torch
from torch import nn, optim

Optimizers = list[optim.Optimizer]


class Maker(NamedTuple):
    """How an optimizer is built, what its settings are called, and how it is supported."""

    shown: str
    support: str
    build: Callable[[nn.Module], Optimizers]


LINEAR = "exact: the step is linear in the gradient"
SLOPE = "elementwise: slope (d(g) - d(0)) / g"
YOUNG = SLOPE + ", smoothed in the first ten steps"
SIGN = "elementwise: a sign, smoothed in every step where that is cheap"
JACOBIAN = "matrix: mean Jacobian along the path, smoothed in the first ten steps"
ORTHOGONAL = "matrix: mean Jacobian along the path, smoothed in every step where that is cheap"


def _schedule_free(model: nn.Module) -> Optimizers:
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=2.5e-3, weight_decay=0.01)
    optimizer.train()
    return [optimizer]


def _muon(model: nn.Module) -> Optimizers:
    """Muon for hidden matrices, AdamW for embeddings, norms and biases."""
    hidden = [
        p for n, p in model.named_parameters() if p.ndim == 2 and "wte" not in n and "wpe" not in n
    ]
    known = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [optim.Muon(hidden, lr=0.02, weight_decay=0.01), optim.AdamW(rest, lr=1e-3)]


def _one(kind: type[optim.Optimizer], **options: object) -> Callable[[nn.Module], Optimizers]:
    return lambda model: [kind(model.parameters(), **options)]


MAKERS = {
    "sgd": Maker("SGD, momentum 0.9", LINEAR, _one(optim.SGD, lr=0.05, momentum=0.9)),
    "asgd": Maker("ASGD", LINEAR, _one(optim.ASGD, lr=0.1)),
    "adam": Maker("Adam", YOUNG, _one(optim.Adam, lr=1e-3)),
    "adamw": Maker("AdamW", YOUNG, _one(optim.AdamW, lr=1e-3, weight_decay=0.01)),
    "adamax": Maker("Adamax", YOUNG, _one(optim.Adamax, lr=2e-3)),
    "nadam": Maker("NAdam", YOUNG, _one(optim.NAdam, lr=1e-3)),
    "radam": Maker("RAdam", SLOPE, _one(optim.RAdam, lr=1e-3)),
    "adadelta": Maker("Adadelta", YOUNG, _one(optim.Adadelta, lr=1.0)),
    "adagrad": Maker("Adagrad", YOUNG, _one(optim.Adagrad, lr=1e-2)),
    "rmsprop": Maker("RMSprop", YOUNG, _one(optim.RMSprop, lr=1e-3)),
    "rmsprop-centered": Maker(
        "RMSprop, centered, momentum 0.9",
        YOUNG,
        _one(optim.RMSprop, lr=3e-4, centered=True, momentum=0.9),
    ),
    "schedule-free": Maker("schedule-free AdamW (`schedulefree`)", YOUNG, _schedule_free),
    "rprop": Maker("Rprop", SIGN, _one(optim.Rprop, lr=1e-4, step_sizes=(1e-6, 1e-3))),
    "lion": Maker("Lion (`lion_pytorch`)", SIGN, _one(lion_pytorch.Lion, lr=2e-4)),
    "adafactor": Maker("Adafactor", JACOBIAN, _one(optim.Adafactor, lr=1e-2)),
    "lamb": Maker("LAMB (`pytorch_optimizer`)", JACOBIAN, _one(pytorch_optimizer.Lamb, lr=5e-3)),
    "muon": Maker("Muon, with AdamW for what is not a hidden matrix", ORTHOGONAL, _muon),
}


def optimizers(name: str, model: nn.Module) -> Optimizers:
    """The optimizers of that name, on a model's parameters."""
    torch.manual_seed(0)
    return MAKERS[name].build(model)
