"""What is carried along a trajectory: a gradient in (w, moments), or a change of them.

Elementwise rules work on flat tensors, parameters of like moves side by side: a handful of large
operations per step instead of a handful per parameter. Letters: K targets or signs, n elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.optim import Along, Move, as_rows, derivative_of, joined

Names = tuple[str, ...]
FADING = 0.9  # of a later step's weight in the size of an element's gradient, per step


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
    """(w, moments) of every parameter, (K, n) each; zero at first. No tensor is written to."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        targets: int,
        parts: Mapping[str, Along] | None = None,
    ):
        self._parameters, self._targets = parameters, targets
        self._parts = dict(parts or {})

    def of(self, names: Names, moments: int) -> Along:
        """The part of these parameters, side by side, with at least so many moments."""
        parts = [self._single(name, moments) for name in names]
        if len(parts) == 1:
            return parts[0]
        rest = tuple(torch.cat([part.moments[i] for part in parts], 1) for i in range(moments))
        return Along(torch.cat([part.weight for part in parts], 1), rest)

    def _single(self, name: str, moments: int = 0) -> Along:
        p = self._parameters[name]
        zero = p.new_zeros(self._targets, p.numel())
        part = self._parts.get(name, Along(zero, ()))
        return Along(part.weight, part.moments + (zero,) * (moments - len(part.moments)))

    def put(self, names: Names, part: Along) -> None:
        """Replaces the part of these parameters."""
        sizes = [self._parameters[name].numel() for name in names]
        weights = part.weight.split(sizes, 1)
        rest = [moment.split(sizes, 1) for moment in part.moments]
        for i, name in enumerate(names):
            self._parts[name] = Along(weights[i], tuple(moment[i] for moment in rest))

    def copy(self) -> Carried:
        """The same, to be carried elsewhere."""
        return Carried(self._parameters, self._targets, self._parts)

    def pull(
        self, moves: Mapping[Names, Move[Any, Any]]
    ) -> tuple[dict[Names, Along], dict[str, Tensor]]:
        """Takes a loss's gradient back through the optimizer's own part of a step.

        Moves are as from `alike`. Returns what was carried until now, by the moves' names; and q,
        the loss's derivative in the consumed gradient, (K, *shape) per parameter.
        """
        after: dict[Names, Along] = {}
        directions: dict[str, Tensor] = {}
        with torch.no_grad():
            for names, move in moves.items():
                derivative = derivative_of(move.rule)
                after[names] = self.of(names, derivative.moments(move))
                before, q = derivative.pull(move, after[names])
                self.put(names, before)
                directions |= self._split(names, q)
        return after, directions

    def push(self, moves: Mapping[Names, Move[Any, Any]], change: Mapping[str, Tensor]) -> None:
        """Takes a change of the state forward through a step (moves by `alike`).

        `change` is of the consumed gradient, (K, *shape) per parameter, 0 where it is missing.
        """
        for names, move in moves.items():
            derivative = derivative_of(move.rule)
            before = self.of(names, derivative.moments(move))
            flat = [
                as_rows(change[name]) if name in change else torch.zeros_like(self._single(name)[0])
                for name in names
            ]
            self.put(names, derivative.push(move, before, torch.cat(flat, 1)))

    def add_to_weights(self, gradients: Mapping[str, Tensor]) -> None:
        """Adds (K, *shape) per parameter to the part of the weights."""
        for name, gradient in gradients.items():
            part = self._single(name)
            self._parts[name] = Along(part.weight + as_rows(gradient), part.moments)

    def _split(self, names: Names, flat: Tensor) -> dict[str, Tensor]:
        """(K, *shape) per parameter, of (K, n) for all of them."""
        shapes = [self._parameters[name].shape for name in names]
        parts = flat.split([shape.numel() for shape in shapes], 1)
        return {
            name: part.reshape(len(flat), *shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }

    def weights(self) -> dict[str, Tensor]:
        """The part of the weights, (K, *shape) per parameter."""
        found: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            found |= self._split((name,), part.weight)
        return found


class Spread:
    """How far a row's removal is likely to change each element's gradient, met last step first.

    Where the shares of B rows are mostly noise, the sum changes by its size over the root of B when
    one of them goes. An element's size is that of the steps after: its own in this step is what may
    have come out small by chance.
    """

    def __init__(self, parameters: Mapping[str, Tensor]):
        self._parameters = parameters
        self._squares: dict[str, Tensor] = {}

    def damped(
        self, moves: Mapping[Names, Move[Any, Any]], rows: int
    ) -> dict[Names, Move[Any, Any]]:
        """The moves with `StepDerivative.damped`; of the step before those of the last call."""
        found: dict[Names, Move[Any, Any]] = {}
        with torch.no_grad():
            for names, move in moves.items():
                found[names] = move
                if not move.rule.elementwise:
                    continue
                square = move.gradient.square()
                if all(name in self._squares for name in names):
                    later = torch.cat([self._squares[name] for name in names])
                    square.lerp_(later, FADING)
                    likely = (later / rows).reshape(move.gradient.shape)
                    found[names] = derivative_of(move.rule).damped(move, likely)
                sizes = [self._parameters[name].numel() for name in names]
                self._squares |= zip(names, square.reshape(-1).split(sizes), strict=True)
        return found
