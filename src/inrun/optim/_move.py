"""One parameter at one step, and elementwise work on it a piece at a time.

A rule's formulas are a dozen passes over a parameter. Done on all of it, each pass goes to memory
and back; done on pieces of 65,536 elements, which stay in the cache, only the first and the last
one do. On a GPU, where one launch per pass is the better way, parameters stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Generic, cast

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.factors import flat
from inrun.optim._rule import (
    Diagonal,
    History,
    Linearized,
    Memory,
    Momentum,
    Rule,
    Setting,
    Slope,
    State,
    defined,
)

PIECE = 65_536

Arrays = tuple[Tensor, Any, Any]
"""Weight, gradient or gradients, and state of one parameter, or of a piece of it."""
Parts = Sequence[Tensor | float]


class Move(Generic[State, Setting]):
    """One parameter at one step: a rule with all its arguments in place."""

    def __init__(
        self, rule: Rule[State, Setting], weight: Tensor, gradient: Tensor, state: State, h: Setting
    ):
        self.rule, self.weight, self.gradient = rule, weight, gradient
        self.state, self.setting = state, h

    def frozen(self) -> Move[State, Setting]:
        """The same move on copies, which the optimizer's step does not overwrite."""
        return self._mapped(Tensor.clone)

    def to(self, dtype: torch.dtype) -> Move[State, Setting]:
        """The same move in another precision."""
        return self._mapped(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Move[State, Setting]:
        state = changed(self.state, change)
        return Move(self.rule, change(self.weight), change(self.gradient), state, self.setting)

    def displacement(self, gradient: Tensor) -> Tensor:
        """The displacement at any gradient, for this step's weight and state."""
        moved = self.rule.displacement(gradient, self.weight, self.state, self.setting)
        return moved if self._divides else self._defined(moved)

    def defined_displacement(self, gradient: Tensor) -> Tensor:
        """The same, and d(0) where the formula has nothing to divide by: a sum that is 0.

        Also of rules that name no eps; it waits for the device.
        """
        moved = self.rule.displacement(gradient, self.weight, self.state, self.setting)
        return self._defined(moved)

    def smooth_displacement(self, gradient: Tensor) -> Tensor:
        """The same, not rounded to less than its arguments' precision."""
        moved = self.rule.smooth_displacement(gradient, self.weight, self.state, self.setting)
        return moved if self._divides else self._defined(moved)

    def _defined(self, moved: Tensor) -> Tensor:
        """The same, and d(0) where it is no number."""
        finite = torch.isfinite(moved)
        if bool(finite.all()):
            return moved
        history = self.history()
        return torch.where(finite, moved, history.momentum + history.decay)

    @property
    def _divides(self) -> bool:
        """Whether an eps keeps every quotient a number, also of rows that nothing touched."""
        return bool(getattr(self.setting, "eps", 1.0) > 0)

    def history(self) -> History:
        """d(0), in its two parts."""
        if not self.rule.elementwise:
            return self.rule.history(self.weight, self.state, self.setting)

        def history(weight: Tensor, gradient: Tensor, state: State) -> Parts:
            found = self.rule.history(weight, state, self.setting)
            if self._divides:
                return found
            return [defined(part) if isinstance(part, Tensor) else part for part in found]

        return History(*self._in_pieces(history))

    def slope(self) -> Slope:
        """The mean Jacobian from no gradient to the consumed one."""
        if not self.rule.elementwise:
            return self.rule.slope(self.gradient, self.weight, self.state, self.setting)

        def coefficient(weight: Tensor, gradient: Tensor, state: State) -> Parts:
            found = self.rule.slope(gradient, weight, state, self.setting)
            return [cast(Diagonal, found).coefficient]

        return Diagonal(*self._in_pieces(coefficient))

    def null_directions(self, gradient_K: Tensor, square: float) -> Tensor:
        """K gradients times the null update's slope per unit of learning rate, (K, *shape).

        The slope is guarded. Of an elementwise rule, a piece of all arrays at a time.

        Args:
            gradient_K: (K, *shape).
            square: the mean square of the last gradient, see `Rule.guarded`; 0 where there was
                none, and then elements that nothing has touched have no slope.
        """
        rule, setting = self.rule, self.setting._replace(lr=1.0)  # type: ignore[attr-defined]
        found = torch.empty_like(gradient_K)
        pairs = tuple(zip(gradient_K, found, strict=True))
        for weight, rows, state in each_piece((self.weight, pairs, self.state)):
            guarded = rule.guarded(state, setting, square)
            slope = cast(Diagonal, rule.null_slope(weight, guarded, setting)).coefficient
            if square == 0 and rule.mean_square is not None:
                # what divides an untouched element is 0, or it is divided by nothing
                slope = torch.where(getattr(state, rule.mean_square) == 0, 0.0, slope)
            for row, into in rows:
                torch.mul(row, slope, out=into)
        return found

    def tangent(self) -> Slope:
        """d'(g) at the consumed gradient."""
        return self.rule.tangent(self.gradient, self.weight, self.state, self.setting)

    def memory(self) -> Memory:
        """How momentum acts in the step.

        Raises:
            NotSupportedError: the rule has no momentum that is linear in earlier gradients.
        """
        numbers: list[float] = []

        def slope(weight: Tensor, gradient: Tensor, state: State) -> Parts:
            told = self._momentum.memory(weight, state, self.setting)
            numbers[:] = told.kept, told.enters
            return [told.slope]

        (found,) = self._in_pieces(slope)
        return Memory(found, *numbers)

    def memorized(self) -> Tensor | None:
        """The tensor that earlier gradients are remembered in; None where there is none (yet)."""
        return self._momentum.remembered(self.state)

    @property
    def _momentum(self) -> Momentum:
        if self.rule.momentum is None:
            raise NotSupportedError(
                f"{type(self.rule).__name__} does not remember gradients linearly. Use "
                "momentum_window=0."
            )
        return self.rule.momentum

    def linearization(self) -> Slope:
        """The slope at the previous step's moments.

        Raises:
            NotSupportedError: the rule has no such denominator.
        """
        return self._linearized.slope(self.weight, self.state, self.setting)

    def linearized_history(self) -> History:
        """d(0) at the previous step's moments.

        Raises:
            NotSupportedError: as `linearization`.
        """
        return self._linearized.history(self.weight, self.state, self.setting)

    @property
    def _linearized(self) -> Linearized:
        if self.rule.linearized is None:
            raise NotSupportedError(
                "The linearized estimator of arXiv 2602.00329 is defined for Adam's update; "
                f"{type(self.rule).__name__} has none. Use estimator='path'."
            )
        return self.rule.linearized

    def rate(self) -> float:
        """The learning rate, negative where the rule maximizes."""
        return self.rule.rate(self.setting)

    def steps_taken(self) -> int | None:
        """How many steps the state has seen, or None (see `Rule.steps_taken`)."""
        return self.rule.steps_taken(self.state)

    def age(self) -> int | None:
        """Of how many gradients, the present one apart, what divides the step is made."""
        return self.rule.age(self.state, self.setting)

    def _in_pieces(self, compute: Callable[[Tensor, Tensor, State], Parts]) -> Parts:
        arrays = self.weight, self.gradient, self.state
        return in_pieces(arrays, lambda arrays: compute(*arrays))


def joined(moves: list[Move[Any, Any]]) -> Move[Any, Any]:
    """Moves of one setting and one age as one move of flat tensors: fewer, larger operations.

    The rule must be elementwise.
    """
    first = moves[0]
    state = [
        flat([m.state[i] for m in moves]) if isinstance(part, Tensor) and part.ndim else part
        for i, part in enumerate(first.state)
    ]
    weight, gradient = flat([m.weight for m in moves]), flat([m.gradient for m in moves])
    return Move(first.rule, weight, gradient, type(first.state)(*state), first.setting)


def in_pieces(arrays: Arrays, compute: Callable[[Arrays], Parts]) -> Parts:
    """`compute`, elementwise in all arrays, on pieces where that is faster.

    `compute` gives tensors of the arrays' shape, or numbers that are the same for all elements.
    """
    if not _divisible(arrays):
        return compute(arrays)
    whole: list[Tensor | float] = []
    begin = 0
    for cut in each_piece(arrays):
        parts, end = compute(cut), begin + cut[0].numel()
        if not whole:
            whole = [_room(part, arrays[0]) for part in parts]
        for room, part in zip(whole, parts, strict=True):
            if isinstance(room, Tensor) and isinstance(part, Tensor):
                room.view(-1)[begin:end] = part
        begin = end
    return whole


def each_piece(arrays: Arrays) -> Iterator[Arrays]:
    """Views of a piece of all arrays at a time; of the whole, where that is the better way."""
    if not _divisible(arrays):
        yield arrays
        return
    shape, found = arrays[0].shape, []

    def gather(t: Tensor) -> Tensor:
        found.append(t.view(-1).split(PIECE) if t.shape == shape else repeat(t))
        return t

    changed(arrays, gather)
    for cut in zip(*found, strict=False):
        parts = iter(cut)
        yield changed(arrays, lambda _, parts=parts: next(parts))  # type: ignore[misc]


def _divisible(arrays: Arrays) -> bool:
    """On the CPU, larger than a piece, laid out alike."""
    shape = arrays[0].shape
    found: list[Tensor] = []
    changed(arrays, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return shape.numel() > PIECE and all(
        t.device.type == "cpu" and (t.ndim == 0 or (t.shape == shape and t.is_contiguous()))
        for t in found
    )


def _room(part: Tensor | float, weight: Tensor) -> Tensor | float:
    return torch.empty_like(weight, dtype=part.dtype) if isinstance(part, Tensor) else part


def as_rows(t_K: Tensor) -> Tensor:
    """(K, elements) of (K, *shape), for any shape: that of a number and of nothing too."""
    return t_K.reshape(t_K.shape[0], t_K.shape[1:].numel())


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with each of its tensors changed: states are named tuples, or mappings in them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: changed(part, change) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = (changed(part, change) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
