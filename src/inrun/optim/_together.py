"""The one place that looks into live optimizers' groups and state: what their steps will do.

Several step together, as Muon for the matrices and AdamW for the rest. Of a sharded parameter a
move is that of this process's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.distributed import is_sharded, own_part, own_state
from inrun.errors import MisuseError
from inrun.optim._device_numbers import DeviceNumbers, Numbers, told
from inrun.optim._live import consumed_gradient, unwrapped
from inrun.optim._move import Move
from inrun.optim._reader import from_torch, rule_for
from inrun.optim._rule import Rule

Moves = Iterator[tuple[Tensor, Move[Any, Any]]]
"""(parameter, its move)."""


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter of every group, in the optimizer's order.

    Those without elements are left out: no step moves them.
    """
    return [p for group in optimizer.param_groups for p in group["params"] if p.numel()]


def moves(
    optimizer: torch.optim.Optimizer, rule: Rule[Any, Any], numbers: Numbers | None = None
) -> Moves:
    """Moves of the parameters that the coming step will change; `numbers` are known already.

    A parameter without a gradient is skipped, as the optimizer skips it.
    """

    def consumed(p: Tensor) -> Tensor | None:
        return None if p.grad is None or not p.numel() else consumed_gradient(optimizer, p)

    return _read(optimizer, rule, consumed, numbers)


def _read(
    optimizer: torch.optim.Optimizer,
    rule: Rule[Any, Any],
    gradient_of: Callable[[Tensor], Tensor | None],
    numbers: Numbers | None,
) -> Moves:
    """Moves of the parameters that are given a gradient."""
    for group in optimizer.param_groups:
        known = told(group, numbers)
        ruled = rule.of(known)
        read = ruled.reader(known)
        for p in group["params"]:
            gradient = gradient_of(p)
            if gradient is None:
                continue
            live, weight = told(optimizer.state.get(p, {}), numbers), own_part(p.detach())
            if ruled.rounds:  # these keep little and compute in full
                weight, gradient = weight.float(), gradient.float()
            live = own_state(live) if is_sharded(p) else live
            yield p, Move(ruled, weight, gradient, *read(live, weight))


class Together:
    """One optimizer or several, each with its update rule."""

    def __init__(self, optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]):
        given = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
        self.members: list[torch.optim.Optimizer] = [unwrapped(optimizer) for optimizer in given]
        if not self.members:
            raise MisuseError("optimizer is an empty list: nothing would step.")
        self.rules = [rule_for(optimizer) for optimizer in self.members]
        # what others keep under the names of torch's nobody knows here: it is given as it is
        self._on_devices = [
            DeviceNumbers(optimizer) if from_torch(rule) else None
            for optimizer, rule in zip(self.members, self.rules, strict=True)
        ]
        self._at_block: list[Numbers | None] = [None for _ in self.members]
        if len({id(p) for p in self.parameters()}) < len(self.parameters()):
            raise MisuseError(
                "Two of the attached optimizers hold the same parameter. What each of their steps "
                "did to it cannot be told apart. Give every parameter to one optimizer."
            )

    @property
    def name(self) -> str:
        """Their classes, for messages."""
        return " and ".join(type(optimizer).__name__ for optimizer in self.members)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """All parameter groups, in order."""
        return [group for optimizer in self.members for group in optimizer.param_groups]

    def parameters(self) -> list[Tensor]:
        """Every parameter of every optimizer."""
        return [p for optimizer in self.members for p in trained_parameters(optimizer)]

    def moves(self) -> Iterator[tuple[int, Tensor, Move[Any, Any]]]:
        """(optimizer's number, parameter, its move) for each that the coming steps will change."""
        for k, (optimizer, rule) in enumerate(zip(self.members, self.rules, strict=True)):
            for p, move in moves(optimizer, rule, self._numbers(k)):
                yield k, p, move

    def moved(self, k: int, before: Mapping[int, Move[Any, Any]]) -> Moves:
        """Moves read again after the k-th has stepped, of the gradients that were consumed.

        A fused step under a gradient scaler unscales `.grad` itself, and loops clear it, so that
        gradients and settings are those of `before`, the moves by the parameter's id.
        """

        def consumed(p: Tensor) -> Tensor | None:
            return before[id(p)].gradient if id(p) in before else None

        for p, m in _read(self.members[k], self.rules[k], consumed, self._numbers(k)):
            yield p, Move(m.rule, m.weight, m.gradient, m.state, before[id(p)].setting)

    def standing(self) -> Moves:
        """The moves that the states of all that is trained are ready for, gradient or not.

        The weight stands in the gradient's place: what is asked of it must not need one.
        """

        def weight(p: Tensor) -> Tensor | None:
            return own_part(p.detach()) if p.requires_grad and p.numel() else None

        for k, (optimizer, rule) in enumerate(zip(self.members, self.rules, strict=True)):
            yield from _read(optimizer, rule, weight, self._numbers(k))

    def _numbers(self, k: int) -> Numbers | None:
        kept = self._on_devices[k]
        return None if kept is None else kept.now()

    def stepped(self, k: int) -> None:
        """The k-th optimizer has taken a step, scored or not."""
        kept = self._on_devices[k]
        if kept is not None:
            kept.stepped()

    def block_begins(self) -> None:
        """Looks up what `move_of` asks for until the optimizers step."""
        self._at_block = [self._numbers(k) for k in range(len(self.members))]

    def move_of(
        self, p: Tensor, times: float, mean: Callable[[Tensor], Tensor] | None = None
    ) -> Move[Any, Any]:
        """One parameter's move if its present gradient, times a number, were consumed.

        `mean` is what becomes of the gradient first, as the mean over processes, of which this one
        may have none.
        """
        held = (any(q is p for q in trained_parameters(one)) for one in self.members)
        k = next((k for k, holds in enumerate(held) if holds), None)
        if k is None or (p.grad is None and mean is None):
            raise MisuseError("A parameter left the optimizer while its gradient was computed.")
        gradient = torch.zeros_like(p)
        if p.grad is not None:
            gradient = consumed_gradient(self.members[k], p)
        gradient = gradient if mean is None else mean(gradient)
        gradient = gradient if times == 1.0 else gradient * times

        def consumed(q: Tensor) -> Tensor | None:
            return gradient if q is p else None

        return next(_read(self.members[k], self.rules[k], consumed, self._at_block[k]))[1]
