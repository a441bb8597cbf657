"""The table of operations that have a rule, by the name of the torch function.

Operations that are written in Python out of other operations are stepped inside, not ruled.
`nn.MultiheadAttention` hands its weights to one large function. Seen from inside it is linear
maps of slices of those weights, and they have rules. A torch function mode cannot see inside: such
a function first asks whether anybody overrides it, and any active mode answers yes. So the same
code is run with that one question answered no. A backward pass is such a function too: checkpoints
compute inside it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from inrun.factors import Factor
from inrun.operations._call import Call

Rule = Callable[[Call, str], Factor | None]
"""(call, name of the argument whose shares are asked for) -> factor, or None: use the fallback."""

Check = Callable[[Mapping[str, Any]], None]
"""Raises where the operation, called with these arguments, cannot be attributed."""


class Operation(NamedTuple):
    """An operation's argument names, its rule, and what is refused.

    `per_row`: it may have several outputs, each of one number per row of its first argument, or of
    their sum: slots are then those of its first argument's rows.
    """

    signature: tuple[str, ...]
    rule: Rule
    check: Check | None = None
    per_row: bool = False

    def bind(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name; positional ones beyond the signature are not named."""
        return {**dict(zip(self.signature, args, strict=False)), **kwargs}


_OPERATIONS: dict[str, Operation] = {}


def operation(
    *names: str, signature: str, check: Check | None = None, per_row: bool = False
) -> Callable[[Rule], Rule]:
    """Registers a rule for the torch functions of these names.

    Args:
        names: as `func.__name__` says them, aliases and operators included; of custom autograd
            functions the class's name with `.apply`.
        signature: the argument names in their order, separated by spaces.
        check: called with the bound arguments before the operation is recorded.
        per_row: see `Operation`.
    """

    def register(rule: Rule) -> Rule:
        for name in names:
            _OPERATIONS[name] = Operation(tuple(signature.split()), rule, check, per_row)
        return rule

    return register


def find(name: str) -> Operation | None:
    """The registered operation, also for its in-place form."""
    found = _OPERATIONS.get(name)
    if found is None and is_in_place(name):
        stem = name.removesuffix("_") if not name.startswith("__") else f"__{name[3:]}"
        found = _OPERATIONS.get(stem)
    return found


def is_in_place(name: str) -> bool:
    """Whether a torch function overwrites its first argument: `add_`, `__iadd__`."""
    if name.startswith("__"):
        return name in {"__iadd__", "__imul__", "__isub__", "__itruediv__"}
    return name.endswith("_")


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
