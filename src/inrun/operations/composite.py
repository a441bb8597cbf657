"""Operations that are written in Python out of other operations: stepped inside, not ruled.

`nn.MultiheadAttention` hands its weights to one large function. Seen from inside it is linear
maps of slices of those weights, and they have rules. A torch function mode cannot see inside: such
a function first asks whether anybody overrides it, and any active mode answers yes. So the same
code is run with that one question answered no. A backward pass is such a function too: checkpoints
compute inside it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

_COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {}


_ASKING = ("has_torch_function", "has_torch_function_unary")


def _stepped_inside(function: types.FunctionType) -> Callable[..., Any]:
    """The same function, in whose namespace `has_torch_function` says no."""
    namespace = {**function.__globals__, **dict.fromkeys(_ASKING, lambda *_: False)}
    inside = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def inside(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function to call instead, with the mode on, or None where nothing is inside."""
    return _COMPOSITES.get(function)


_attention: Any = F.multi_head_attention_forward
_backward: Any = torch.autograd.backward
_of_tensor: Any = torch.Tensor.backward
for _function in (_attention, _backward, _of_tensor):
    _COMPOSITES[_function] = _stepped_inside(_function)
