"""A model and its optimizers, copied so that the copies can be stepped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError


def copies(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Deep copies that share nothing with the originals; the optimizers hold the copied model.

    `copy.deepcopy` of an optimizer keeps its groups and state only (`Optimizer.__getstate__`), and
    so loses what other packages keep on the object, which their `step` reads.
    """
    known = _packed_copies([optimizer.state for optimizer in optimizers])
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
    return copy.deepcopy(dict(state), _packed_copies(state))


def _packed_copies(state: Any) -> dict[int, Any]:
    """What `copy.deepcopy` is to take for tensors that pack others: some have no clone."""
    return {id(t): _packed_copy(t) for t in _tensors(state) if hasattr(t, "__tensor_flatten__")}


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
