"""An optimizer's update rule, as pure functions of one parameter's gradient, weight and state.

For a parameter with weight w and state s before the step, an optimizer with consumed gradient g
does w' = w - d(g), and d is all that attribution needs to know about it:

    displacement   d(g)
    history        d(0) = momentum + decay     what the step does without any gradient
    slope          J with J g = d(g) - d(0)    the mean Jacobian of d on the way from 0 to g
    tangent        d'(g)                       its Jacobian at g: the leave-one-out marginal
    linearization  the slope at the previous step's moments (arXiv 2602.00329)
    settled        slope and history again, told from the state that the step left behind
    memory         how gradients of earlier steps still act in this one

All of them contain the learning rate. Slope, tangent and linearization are `Slope`s: linear maps
that know how to pull a validation gradient back. Where d is elementwise the slope is diagonal,
(d(g) - d(0)) / g; where a formula is 0 / 0 because nothing has touched the element yet (no gradient
now, none before), it is 0: no sample moved it. Where d(0) has nothing to divide by (eps = 0) it is
0 too, and all of d(g) is the gradient's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._pieces import Arrays, Parts, changed, in_pieces
from inrun.optim._slope import Diagonal, Slope

State = TypeVar("State")
Setting = TypeVar("Setting")


class History(NamedTuple):
    """d(0), split: what momentum does and what weight decay does (each a displacement)."""

    momentum: Tensor | float
    decay: Tensor | float


class Settled(NamedTuple):
    """Slope and history of a step that was taken, without the numbers that scale them.

    `slope` is the coefficient times a scale, or None where it was not asked for. Momentum displaced
    `momentum * rate`, weight decay `decayed * share`; where there is none of either it is None.
    """

    slope: Tensor | None
    momentum: Tensor | None
    rate: float
    decayed: Tensor | None
    share: float


class Memory(NamedTuple):
    """How the gradients of earlier steps act in a step's null update, where they do so linearly.

    The optimizer remembers M = sum over steps of (what was `kept` since) * `enters` * gradient, and
    momentum displaces `slope` * M, with M as it is before the step.
    """

    slope: Tensor | float
    kept: float
    enters: float


def _defined(displaced: Tensor) -> Tensor:
    """0 where it is no number."""
    return torch.where(torch.isfinite(displaced), displaced, 0.0)


def steps_seen(state: Mapping[str, Any]) -> int:
    """How often a live state says it was stepped; 0 where the optimizer has not made one yet."""
    return int(state["step"]) if "step" in state else 0


class Rule(ABC, Generic[State, Setting]):
    """One optimizer's update rule. Stateless: state and setting are arguments.

    A setting is a NamedTuple with `lr`, `decay` and `maximize` among its fields.
    """

    linearizes: ClassVar[bool] = False
    """Whether `linearization` is defined."""

    elementwise: ClassVar[bool] = True
    """Whether each element's displacement depends on that element's gradient alone."""

    remembers: ClassVar[bool] = False
    """Whether `memory` is defined."""

    rounds: ClassVar[bool] = False
    """Whether the state is rounded after each step, so that what it becomes is not known."""

    jumps: bool = False
    """Whether d is made of steps, as signs are, where no quadrature sees where they lie."""

    @abstractmethod
    def read(self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor) -> Any:
        """(state, setting) of one parameter, read from the live optimizer before its step.

        The tensors are the optimizer's own, not copies: they are valid until it steps.
        """

    @abstractmethod
    def displacement(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(g) = w - w'."""

    def history(self, w: Tensor, s: State, h: Setting) -> History:
        """d(0), in its two parts: without decay, and what decay adds."""
        whole, undecayed = self.without_gradient(w, s, h), self.without_decay(h)
        if undecayed == h:
            return History(whole, 0.0)
        momentum = self.without_gradient(w, s, undecayed)
        return History(momentum, whole - momentum)

    def without_gradient(self, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(0), and 0 where the formula has nothing to divide by."""
        return _defined(self.displacement(torch.zeros_like(w), w, s, h))

    def without_decay(self, h: Setting) -> Setting:
        """The setting of the same optimizer without weight decay."""
        setting: Any = h
        return cast(Setting, setting._replace(decay=0.0))

    def smooth_displacement(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(g) in the precision of its arguments, where the optimizer itself rounds to less."""
        return self.displacement(g, w, s, h)

    @abstractmethod
    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        """The mean Jacobian from 0 to g, without the cancellation that a quotient would suffer."""

    @abstractmethod
    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        """d'(g)."""

    def linearization(self, w: Tensor, s: State, h: Setting) -> Slope:
        """The slope with the denominator of the previous step; 0 where that is not defined.

        Raises:
            NotSupportedError: the rule has no such denominator.
        """
        raise self._not_linearized()

    def linearized_history(self, w: Tensor, s: State, h: Setting) -> History:
        """d(0) with the denominator of the previous step; 0 where that is not defined.

        Raises:
            NotSupportedError: as `linearization`.
        """
        raise self._not_linearized()

    def _not_linearized(self) -> NotSupportedError:
        return NotSupportedError(
            f"The linearized estimator of arXiv 2602.00329 is defined for Adam's update; "
            f"{type(self).__name__} has none. Use estimator='path'."
        )

    def settles(self, s: State, h: Setting) -> bool:
        """Whether `settled` is defined; s is the state before the step."""
        return False

    def settled(
        self, g: Tensor, w: Tensor, s: State, h: Setting, scale: float | None = 1.0
    ) -> Settled:
        """Slope and history of a step that was taken, elementwise.

        Nothing needs to be kept from before the step then. It is exact but for the rounding of
        the state.

        Args:
            g: the gradient that was consumed.
            w: the weight after the step.
            s: the state after the step.
            h: the setting that the step had.
            scale: what the slope is to be multiplied by; None where it is not asked for.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be told from its later state.")

    def slope_at_once(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope | None:
        """`slope` in one compiled pass; None where there is none for rule, device or layout."""
        return None

    def settled_at_once(
        self,
        after: Move[State, Setting],
        opening_K: Tensor,
        closing_K: Tensor,
        directions_K: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor] | None:
        """What `settled` comes to with two validation gradients' mean, in one compiled pass.

        Args:
            after: the move, read after the step.
            opening_K: validation gradients before it, (K, *shape).
            closing_K: and after it.
            directions_K: is written to, slope times mean gradient; None if there is no use for it.
            scale: what directions are to be multiplied by.

        Returns:
            What momentum and decay did, each (K,) float64; None where there is no such pass for
            the rule, the device or the layout, and nothing was written.
        """
        return None

    def memory(self, w: Tensor, s: State, h: Setting) -> Memory:
        """How momentum acts in the step, elementwise; s is the state before it.

        0 where nothing was ever remembered.
        """
        raise NotImplementedError(f"{type(self).__name__} has no momentum that is linear.")

    def memorized(self, s: State) -> Tensor | None:
        """The tensor that earlier gradients are remembered in; None where there is none (yet)."""
        return None

    def effort(self, shape: torch.Size) -> float:
        """Cost of one displacement an element, in units of an elementwise rule's."""
        return 1.0

    def rate(self, h: Setting) -> float:
        """The learning rate that plain SGD would have here, negative where the rule maximizes."""
        setting: Any = h
        return -float(setting.lr) if setting.maximize else float(setting.lr)

    @abstractmethod
    def advance(self, g: Tensor, w: Tensor, s: State, h: Setting) -> State:
        """The state after a step with gradient g."""

    @abstractmethod
    def steps_taken(self, s: State) -> int | None:
        """How many steps ago the rule acted like a sign of the gradient; None where it never does.

        Adam's first steps are nearly signs, where a straight path says little; the attribution then
        smooths. A rule that takes signs always says 0, one that is linear in g says None.
        """

    def window(self, s: State, h: Setting) -> float:
        """Over how many gradients the size that divides the step is averaged: 1 / (1 - b2).

        Infinite where none is forgotten, or where nothing divides the step.
        """
        return math.inf

    def age(self, s: State, h: Setting) -> int | None:
        """How many gradients that size is made of, the present one apart; None where none divides.

        It is what makes a step less like a sign of its own gradient, and follows from the window:
        (1 - b2^t) / (1 - b2) of t steps. With b2 = 0.999 that is t for long, with 0.9 never 10.
        """
        taken = self.steps_taken(s)
        if taken is None:
            return None
        n = self.window(s, h)
        seen = taken if math.isinf(n) else n * (1 - (1 - 1 / n) ** taken)
        return math.floor(min(seen + 0.05, n - 0.05))  # a hair is no step


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

    def _defined(self, moved: Tensor) -> Tensor:
        """The same, and d(0) where it is no number."""
        defined = torch.isfinite(moved)
        if bool(defined.all()):
            return moved
        history = self.history()
        return torch.where(defined, moved, history.momentum + history.decay)

    def smooth_displacement(self, gradient: Tensor) -> Tensor:
        """The same, not rounded to less than its arguments' precision."""
        moved = self.rule.smooth_displacement(gradient, self.weight, self.state, self.setting)
        return moved if self._divides else self._defined(moved)

    def history(self) -> History:
        """d(0), in its two parts."""
        if not self.rule.elementwise:
            return self.rule.history(self.weight, self.state, self.setting)

        def history(arrays: Arrays) -> Parts:
            weight, _, state = arrays
            found = self.rule.history(weight, state, self.setting)
            if self._divides:
                return found
            return [_defined(part) if isinstance(part, Tensor) else part for part in found]

        return History(*in_pieces((self.weight, self.gradient, self.state), history))

    @property
    def _divides(self) -> bool:
        """Whether an eps keeps every quotient a number, also of rows that nothing touched."""
        return bool(getattr(self.setting, "eps", 1.0) > 0)

    def slope(self) -> Slope:
        """The mean Jacobian from no gradient to the consumed one."""
        if not self.rule.elementwise:
            return self.rule.slope(self.gradient, self.weight, self.state, self.setting)
        at_once = self.rule.slope_at_once(self.gradient, self.weight, self.state, self.setting)
        if at_once is not None:
            return at_once

        def coefficient(arrays: Arrays) -> Parts:
            weight, gradient, state = arrays
            return [
                cast(Diagonal, self.rule.slope(gradient, weight, state, self.setting)).coefficient
            ]

        return Diagonal(*in_pieces((self.weight, self.gradient, self.state), coefficient))

    def memory(self) -> Memory:
        """See `Rule.memory`."""
        numbers: list[float] = []

        def slope(arrays: Arrays) -> Parts:
            weight, _, state = arrays
            told = self.rule.memory(weight, state, self.setting)
            numbers[:] = told.kept, told.enters
            return [told.slope]

        (found,) = in_pieces((self.weight, self.gradient, self.state), slope)
        return Memory(found, *numbers)

    def memorized(self) -> Tensor | None:
        """See `Rule.memorized`."""
        return self.rule.memorized(self.state)

    def tangent(self) -> Slope:
        """d'(g) at the consumed gradient."""
        return self.rule.tangent(self.gradient, self.weight, self.state, self.setting)

    def linearization(self) -> Slope:
        """The slope at the previous step's moments."""
        return self.rule.linearization(self.weight, self.state, self.setting)

    def linearized_history(self) -> History:
        """d(0) at the previous step's moments."""
        return self.rule.linearized_history(self.weight, self.state, self.setting)

    def rate(self) -> float:
        """The learning rate, negative where the rule maximizes."""
        return self.rule.rate(self.setting)

    def steps_taken(self) -> int | None:
        """How many steps the state has seen, or None (see `Rule.steps_taken`)."""
        return self.rule.steps_taken(self.state)

    def age(self) -> int | None:
        """See `Rule.age`."""
        return self.rule.age(self.state, self.setting)
