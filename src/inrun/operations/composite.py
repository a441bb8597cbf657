"""Operations that are written in Python out of other operations: stepped inside, not ruled.

`nn.MultiheadAttention` hands its weights to one large function. Seen from inside it is linear
maps of slices of those weights, and they have rules. A torch function mode cannot see inside: such
a function first asks whether anybody overrides it, and any active mode answers yes. So the same
code is run with that one question answered no.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

_COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {}


def _stepped_inside(function: types.FunctionType) -> Callable[..., Any]:
    """The same function, in whose namespace `has_torch_function` says no."""
    namespace = {**function.__globals__, "has_torch_function": lambda *_: False}
    inside = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def inside(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function to call instead, with the mode on, or None where nothing is inside."""
    return _COMPOSITES.get(function)


_attention: Any = F.multi_head_attention_forward
_COMPOSITES[_attention] = _stepped_inside(_attention)
