"""What stands around a live optimizer: wrappers of training frameworks, and gradient scalers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from inrun.distributed import own_part

_WRAPPERS = {"AcceleratedOptimizer", "LightningOptimizer"}


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside the wrappers of `accelerate` and Lightning.

    Hooks must hang on the inner one: a wrapper's step is not always a step.
    """
    while type(optimizer).__name__ in _WRAPPERS:
        optimizer = optimizer.optimizer
    return cast(torch.optim.Optimizer, optimizer)


def skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the coming step does nothing: a gradient scaler found a gradient not finite.

    A fused optimizer is called all the same and told; any other is not called at all.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def consumed_gradient(optimizer: torch.optim.Optimizer, p: Tensor) -> Tensor:
    """The gradient that the coming step takes in.

    It is `.grad`, but where a fused optimizer's own kernel unscales it first; of a sharded
    parameter this process's part.
    """
    assert p.grad is not None
    gradient = own_part(p.grad.detach())
    scale = getattr(optimizer, "grad_scale", None)
    return gradient if scale is None else gradient / scale.to(gradient.device)
