"""One use of a parameter, seen after the backward pass; and the table of operations with a rule.

A layer is the operations that it calls, so rules are written for operations (`linear`, `conv2d`,
`mul`): any module that calls them is covered, whatever its class. A rule needs to know which part
of the output belongs to which sample: its `Layout` where samples follow one another along an axis,
as they mostly do, or else its `Slots`. The table is by the name of the torch function.

Operations that are written in Python out of other operations are stepped inside, not ruled.
`nn.MultiheadAttention` hands its weights to one large function. Seen from inside it is linear
maps of slices of those weights, and they have rules. A torch function mode cannot see inside: such
a function first asks whether anybody overrides it, and any active mode answers yes. So the same
code is run with that one question answered no. A backward pass is such a function too: checkpoints
compute inside it.

Letters: B samples; S slots of a sample along the batch axis (1, or more where batch and positions
were flattened into one axis); T positions; the last axis of rows is the features'.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inrun.factors import Factor


class Layout(NamedTuple):
    """Which axis of an operation's output runs over samples.

    `axis` None: the whole output belongs to the one sample. `sample_major`: where the axis is
    longer than the batch, a sample's slots lie next to each other (the usual flattening); if not,
    samples alternate.
    """

    axis: int | None
    sample_major: bool = True

    def split(self, t: Tensor, samples: int) -> Tensor:
        """(B, S, *the other axes in their order)."""
        if self.axis is None:
            return t.unsqueeze(0).unsqueeze(0)
        if self.axis == 0 and t.shape[0] == samples:
            return t.unsqueeze(1)
        slots = t.shape[self.axis] // samples if samples else 1
        before, after = t.shape[: self.axis], t.shape[self.axis + 1 :]
        if self.sample_major:
            apart = t.reshape(*before, samples, slots, *after)
            return apart.movedim((self.axis, self.axis + 1), (0, 1))
        apart = t.reshape(*before, slots, samples, *after)
        return apart.movedim((self.axis + 1, self.axis), (0, 1))

    def only(self, gradient: Tensor, sample: int, samples: int) -> Tensor:
        """The gradient with every other sample's part set to zero."""
        masked = torch.zeros_like(gradient)
        self.split(masked, samples)[sample] = self.split(gradient, samples)[sample]
        return masked


class Slots:
    """An output whose slots belong to samples as an owner map says, in no order.

    Each slot is split off as a row of its own: (P, 1, *the other axes), and sums by owner come
    later (`inrun.factors.by_owner`). Slots of no sample are left out.

    Args:
        codes: the owner map; axes as long as the output's, or 1.
        samples: B.
    """

    def __init__(self, codes: Tensor, samples: int):
        self._codes, self.samples = codes, samples
        self.axes = tuple(i for i, size in enumerate(codes.shape) if size != 1)
        flat = codes.flatten().long()
        self._kept = None if bool((flat >= 0).all()) else (flat >= 0).nonzero().flatten()
        self._owner_P = flat if self._kept is None else flat[self._kept]
        self._there: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    @property
    def axis(self) -> int | None:
        """The one axis along which owners vary, None where there is none, -1 for several."""
        return None if not self.axes else self.axes[0] if len(self.axes) == 1 else -1

    def owners(self, device: torch.device) -> Tensor:
        """(P,): the owner of each slot that has one."""
        return self._on(device)[0]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if device not in self._there:
            kept = None if self._kept is None else self._kept.to(device)
            self._there[device] = self._owner_P.to(device), kept
        return self._there[device]

    def split(self, t: Tensor, samples: int) -> Tensor:
        """(P, 1, *the other axes in their order)."""
        rest = [i for i in range(t.ndim) if i not in self.axes]
        flat = t.permute(*self.axes, *rest).reshape(-1, 1, *[t.shape[i] for i in rest])
        kept = self._on(t.device)[1]
        return flat if kept is None else flat[kept]

    def only(self, gradient: Tensor, sample: int, samples: int) -> Tensor:
        """The gradient with every other sample's part set to zero."""
        return gradient * (self._codes == sample).to(gradient.device)

    def strays(self, gradient: Tensor) -> bool:
        """Whether slots of no sample carry gradient."""
        if self._kept is None:
            return False
        nobodys = (self._codes < 0).to(gradient.device)
        return bool(((gradient != 0) & nobodys).any())


@dataclass(slots=True)
class Call:
    """An operation with its arguments bound by name and its output's gradient.

    `others`: gradients of its further outputs, where its rule wants them.
    """

    name: str
    arguments: Mapping[str, Any]
    gradient: Tensor
    layout: Layout | Slots
    samples: int
    others: tuple[Tensor | None, ...] = ()

    def __getitem__(self, argument: str) -> Any:
        """The argument of that name, None where it was not given."""
        return self.arguments.get(argument)

    def split(self, t: Tensor) -> Tensor:
        """(B, S, *other axes) of a tensor that is laid out like the output."""
        return self.layout.split(t, self.samples)

    def summed(self, t: Tensor) -> Tensor:
        """(B, *other axes): a sample's slots added up."""
        if self._is_apart(t):
            return t
        split = self.split(t)
        return split.squeeze(1) if split.shape[1] == 1 else split.sum(1)

    def _is_apart(self, t: Tensor) -> bool:
        """Whether each row is a sample's, as of most tensors."""
        layout = self.layout
        return isinstance(layout, Layout) and layout.axis == 0 and t.shape[0] == self.samples

    def images(self, t: Tensor, *, batched: bool) -> Tensor:
        """(B, S, *other axes) of a tensor whose axis 0 holds images, if it has such an axis."""
        one = self.layout.axis is None
        return t.unsqueeze(0) if one and batched else self.split(t)

    def rows(self, t: Tensor) -> Tensor:
        """(B, T, features) of a tensor that is laid out like the output up to its last axis."""
        if t.ndim == 2 and self._is_apart(t):
            return t.unsqueeze(1)
        split = self.split(t)
        return (
            split.flatten(1, -2)
            if split.ndim > 3
            else split.reshape(split.shape[0], split.shape[1:-1].numel(), split.shape[-1])
        )


def over_rows(rows_BTM: Tensor) -> Tensor:
    """Sum over positions, (B, M); on a CPU by a matrix product, which is faster there."""
    if rows_BTM.shape[1] == 1:
        return rows_BTM.squeeze(1)
    if rows_BTM.device.type != "cpu" or rows_BTM.dtype not in (torch.float32, torch.float64):
        return rows_BTM.sum(1)
    B, T, _ = rows_BTM.shape
    return torch.bmm(rows_BTM.new_ones(1, 1, T).expand(B, 1, T), rows_BTM).squeeze(1)


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


_WHOLE: Any = (F.multi_head_attention_forward, torch.autograd.backward, torch.Tensor.backward)
_COMPOSITES.update({function: _stepped_inside(function) for function in _WHOLE})
