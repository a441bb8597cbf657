"""A model and its optimizers, copied so that the copies can be stepped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def copies(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Deep copies that share nothing with the originals; the optimizers hold the copied model.

    `copy.deepcopy` of an optimizer keeps its groups and state only (`Optimizer.__getstate__`), and
    so loses what other packages keep on the object, which their `step` reads.
    """
    known: dict[int, Any] = {}
    model_copy, copied = copy.deepcopy((model, list(optimizers)), known)
    for optimizer, twin in zip(optimizers, copied, strict=True):
        for name, value in vars(optimizer).items():
            if name not in vars(twin):
                setattr(twin, name, copy.deepcopy(value, known))
    return model_copy, copied
