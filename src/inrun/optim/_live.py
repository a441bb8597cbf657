"""What stands around a live optimizer: wrappers, gradient scalers, and copies to be stepped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from inrun.distributed import own_part
from inrun.errors import MisuseError

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


def copies(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Deep copies that share nothing with the originals; the optimizers hold the copied model.

    `copy.deepcopy` of an optimizer keeps its groups and state only (`Optimizer.__getstate__`), and
    so loses what other packages keep on the object, which their `step` reads.
    """
    known = _tensor_copies([optimizer.state for optimizer in optimizers])
    try:
        model_copy, copied = copy.deepcopy((model, list(optimizers)), known)
    except Exception as error:  # whatever the model keeps that cannot be copied
        raise MisuseError(_why_not(model, error)) from error
    for optimizer, twin in zip(optimizers, copied, strict=True):
        for name, value in vars(optimizer).items():
            if name not in vars(twin):
                setattr(twin, name, copy.deepcopy(value, known))
    return model_copy, copied


def _why_not(model: nn.Module, error: Exception) -> str:
    """Which module keeps a tensor of the graph, if one does."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if any(t.grad_fn is not None for t in _tensors(value)):
                where = f"module {path!r}" if path else "the model itself"
                return (
                    f"copy.deepcopy cannot copy the model: {where} keeps a tensor with a graph as "
                    f"its attribute {name!r}. Keep {name}.detach() there, or delete it when the "
                    "backward pass is over."
                )
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"copy.deepcopy cannot copy the model and its optimizer: {line}"


def state_copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of an optimizer's state_dict."""
    return copy.deepcopy(dict(state), _tensor_copies(state))


def _tensor_copies(state: Any) -> dict[int, Any]:
    """What `copy.deepcopy` is to take for tensors of an optimizer's state.

    Its own copy of one takes ten times as long as a clone, and tensors that pack others may have
    none.
    """
    found: dict[int, Any] = {}
    for t in _tensors(state):
        if hasattr(t, "__tensor_flatten__"):
            found[id(t)] = _packed_copy(t)
        elif type(t) is Tensor and not t.requires_grad:
            found[id(t)] = t.clone()
    return found


def _packed_copy(t: Any) -> Tensor:
    names, context = t.__tensor_flatten__()
    inner = {name: getattr(t, name).clone() for name in names}
    packed: Tensor = type(t).__tensor_unflatten__(inner, context, t.shape, t.stride())
    return packed


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
