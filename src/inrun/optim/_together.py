"""Optimizers that step together: Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.optim._device_numbers import Numbers
from inrun.optim._live import unwrapped
from inrun.optim._move import Move
from inrun.optim._reader import (
    device_numbers,
    move_of,
    moved,
    moves,
    rule_for,
    standing,
    trained_parameters,
)


class Together:
    """One optimizer or several, each with its update rule."""

    def __init__(self, optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]):
        self.members: list[torch.optim.Optimizer] = []
        if isinstance(optimizers, list | tuple):
            self.members += [unwrapped(optimizer) for optimizer in optimizers]
        else:
            self.members.append(unwrapped(optimizers))
        if not self.members:
            raise MisuseError("optimizer is an empty list: nothing would step.")
        self.rules = [rule_for(optimizer) for optimizer in self.members]
        kept = zip(self.members, self.rules, strict=True)
        self._on_devices = [device_numbers(optimizer, rule) for optimizer, rule in kept]
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

    def owner_of(self, p: Tensor) -> int:
        """The number of the optimizer that holds a parameter."""
        return next(
            k
            for k, optimizer in enumerate(self.members)
            if any(q is p for q in trained_parameters(optimizer))
        )

    def moves(self) -> Iterator[tuple[int, Tensor, Move[Any, Any]]]:
        """(optimizer's number, parameter, its move) for each that the coming steps will change."""
        for k, (optimizer, rule) in enumerate(zip(self.members, self.rules, strict=True)):
            for p, move in moves(optimizer, rule, self._numbers(k)):
                yield k, p, move

    def moved(
        self, k: int, before: Mapping[int, Move[Any, Any]]
    ) -> Iterator[tuple[Tensor, Move[Any, Any]]]:
        """See `inrun.optim.moved`, of the k-th optimizer."""
        yield from moved(self.members[k], self.rules[k], before, self._numbers(k))

    def standing(self) -> Iterator[tuple[Tensor, Move[Any, Any]]]:
        """(parameter, move) of all that is trained, between steps; see `inrun.optim.standing`."""
        for k, (optimizer, rule) in enumerate(zip(self.members, self.rules, strict=True)):
            yield from standing(optimizer, rule, self._numbers(k))

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
        """One parameter's move, cut out of what was read of all; see `inrun.optim.move_of`."""
        k = self.owner_of(p)
        return move_of(self.members[k], self.rules[k], p, times, mean, self._at_block[k])
