"""What is carried along a trajectory: a gradient in (w, moments), or a change of them.

Elementwise rules work on flat tensors, parameters of like moves side by side: a handful of large
operations a step instead of a handful a parameter. Letters: K targets or signs, n elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.optim import Along, Move, as_rows, derivative_of, joined

Names = tuple[str, ...]


def alike(moves: Sequence[tuple[str, Move[Any, Any]]]) -> dict[Names, Move[Any, Any]]:
    """Moves with one setting and one age, joined; by the names of their parameters.

    Those of a rule that mixes a parameter's elements stay as they are.
    """
    groups: dict[object, list[tuple[str, Move[Any, Any]]]] = {}
    for name, move in moves:
        plain = tuple(_number(part) for part in move.state)
        absent = tuple(part is None for part in move.state)
        alone = None if move.rule.elementwise else name
        key = (alone, move.setting, plain, absent, move.weight.dtype, move.weight.device)
        groups.setdefault(key, []).append((name, move))
    return {
        tuple(name for name, _ in group): joined([move for _, move in group])
        if group[0][1].rule.elementwise
        else group[0][1]
        for group in groups.values()
    }


def _number(part: Any) -> Any:
    """What of a state is the same for all elements; None for a tensor of elements."""
    if not isinstance(part, Tensor):
        return part
    return None if part.ndim else float(part)


class Carried:
    """(w, moments) of every parameter, (K, n) a tensor; zero at first."""

    def __init__(self, parameters: Mapping[str, Tensor], targets: int):
        self._parameters, self._targets = parameters, targets
        self._flat: dict[Names, Along] = {}

    def of(self, names: Names, moments: int) -> Along:
        """The part of these parameters, side by side."""
        if names not in self._flat or len(self._flat[names].moments) < moments:
            parts = [self._single(name, moments) for name in names]
            for name in names:
                self._flat.pop((name,), None)
            weight = torch.cat([part.weight for part in parts], 1)
            rest = tuple(torch.cat([p.moments[i] for p in parts], 1) for i in range(moments))
            self._flat[names] = Along(weight, rest)
        return self._flat[names]

    def _single(self, name: str, moments: int) -> Along:
        """One parameter's part, with at least so many moments."""
        for names in [names for names in self._flat if name in names and len(names) > 1]:
            self._take_apart(names)
        p = self._parameters[name]
        zero = p.new_zeros(self._targets, p.numel())
        part = self._flat.pop((name,), Along(zero, ()))
        return Along(part.weight, part.moments + (zero,) * (moments - len(part.moments)))

    def _take_apart(self, names: Names) -> None:
        whole = self._flat.pop(names)
        sizes = [self._parameters[name].numel() for name in names]
        weights = whole.weight.split(sizes, 1)
        rest = [moment.split(sizes, 1) for moment in whole.moments]
        for i, name in enumerate(names):
            self._flat[(name,)] = Along(weights[i], tuple(moment[i] for moment in rest))

    def put(self, names: Names, part: Along) -> None:
        """Replaces the part of these parameters."""
        self._flat[names] = part

    def copy(self) -> Carried:
        """The same, to be carried elsewhere; no tensor is ever written to."""
        twin = Carried(self._parameters, self._targets)
        twin._flat = dict(self._flat)
        return twin

    def pull(
        self, moves: Mapping[Names, Move[Any, Any]]
    ) -> tuple[dict[Names, Along], dict[str, Tensor]]:
        """Takes a loss's gradient back through the optimizer's own part of a step.

        Args:
            moves: as from `alike`.

        Returns:
            What was carried until now, by the moves' names; and q, the loss's derivative in the
            consumed gradient, (K, *shape) a parameter.
        """
        after: dict[Names, Along] = {}
        directions: dict[str, Tensor] = {}
        with torch.no_grad():
            for names, move in moves.items():
                derivative = derivative_of(move.rule)
                after[names] = self.of(names, derivative.moments(move))
                before, q = derivative.pull(move, after[names])
                self.put(names, before)
                directions |= self.split(names, q)
        return after, directions

    def add_to_weights(self, gradients: Mapping[str, Tensor]) -> None:
        """Adds (K, *shape) a parameter to the part of the weights."""
        for name in gradients:
            if not any(name in names for names in self._flat):
                self.of((name,), 0)
        for names, part in self._flat.items():
            if any(name in gradients for name in names):
                weight = part.weight + self.flat(names, gradients)
                self._flat[names] = Along(weight, part.moments)

    def flat(self, names: Names, tensors: Mapping[str, Tensor]) -> Tensor:
        """(K, n) of (K, *shape) a parameter, 0 where it is missing."""
        found = []
        for name in names:
            p = self._parameters[name]
            part = tensors.get(name)
            found.append(p.new_zeros(self._targets, p.numel()) if part is None else as_rows(part))
        return torch.cat(found, 1)

    def split(self, names: Names, flat: Tensor) -> dict[str, Tensor]:
        """(K, *shape) a parameter, of (K, n) for all of them."""
        sizes = [self._parameters[name].numel() for name in names]
        return {
            name: part.reshape(len(flat), *self._parameters[name].shape)
            for name, part in zip(names, flat.split(sizes, 1), strict=True)
        }

    def weights(self) -> dict[str, Tensor]:
        """The part of the weights, (K, *shape) a parameter."""
        found: dict[str, Tensor] = {}
        for names, part in self._flat.items():
            found |= self.split(names, part.weight)
        return found
