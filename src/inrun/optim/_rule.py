"""An optimizer's update rule, as pure functions of one parameter's gradient, weight and state.

For a parameter with weight w and state s before the step, an optimizer with consumed gradient g
does w' = w - d(g), and d is all that attribution needs to know about it:

    displacement   d(g)                        elementwise in g
    history        d(0) = momentum + decay     what the step does without any gradient
    slope          (d(g) - d(0)) / g           the path integral of d from 0 to g, per unit of g
    tangent        d'(g)                       the leave-one-out marginal, per unit of g
    linearization  the slope at the previous step's moments (arXiv 2602.00329)

All of them contain the learning rate. Tensors have the parameter's shape; a rule that is linear
in g may return a float where every element is the same. Where a formula is 0 / 0 because nothing
has touched the element yet (no gradient now, none before), the slope is 0: no sample moved it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar, cast

from torch import Tensor

State = TypeVar("State")
Setting = TypeVar("Setting")


class History(NamedTuple):
    """d(0), split: what momentum does and what weight decay does (each a displacement)."""

    momentum: Tensor | float
    decay: Tensor | float


class Rule(ABC, Generic[State, Setting]):
    """One optimizer's update rule. Stateless: state and setting are arguments."""

    @abstractmethod
    def read(self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor) -> Any:
        """(state, setting) of one parameter, read from the live optimizer before its step.

        The tensors are the optimizer's own, not copies: they are valid until it steps.
        """

    @abstractmethod
    def displacement(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(g) = w - w'."""

    @abstractmethod
    def history(self, w: Tensor, s: State, h: Setting) -> History:
        """d(0), in its two parts."""

    @abstractmethod
    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor | float:
        """(d(g) - d(0)) / g without the cancellation that the quotient itself would suffer."""

    @abstractmethod
    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor | float:
        """d'(g)."""

    @abstractmethod
    def linearization(self, w: Tensor, s: State, h: Setting) -> Tensor | float:
        """The slope with the denominator of the previous step; 0 where that is not defined."""

    @abstractmethod
    def linearized_history(self, w: Tensor, s: State, h: Setting) -> History:
        """d(0) with the denominator of the previous step; 0 where that is not defined."""

    @abstractmethod
    def advance(self, g: Tensor, w: Tensor, s: State, h: Setting) -> State:
        """The state after a step with gradient g."""

    @abstractmethod
    def steps_taken(self, s: State) -> int | None:
        """How many steps this state has seen; None for a rule that does not start like a sign.

        Adam's first steps are nearly signs of the gradient, where first order says little; the
        attribution then smooths. Rules that are linear in g never need to.
        """


class Move(Generic[State, Setting]):
    """One parameter at one step: a rule with all its arguments in place."""

    def __init__(
        self, rule: Rule[State, Setting], weight: Tensor, gradient: Tensor, state: State, h: Setting
    ):
        self.rule, self.weight, self.gradient = rule, weight, gradient
        self.state, self.setting = state, h

    def frozen(self) -> Move[State, Setting]:
        """The same move on copies, which the optimizer's step does not overwrite."""
        parts = [t.clone() if isinstance(t, Tensor) else t for t in cast(tuple[Any], self.state)]
        state = type(self.state)(*parts)
        return Move(self.rule, self.weight.clone(), self.gradient.clone(), state, self.setting)

    def displacement(self, gradient: Tensor) -> Tensor:
        """The displacement at any gradient, for this step's weight and state."""
        return self.rule.displacement(gradient, self.weight, self.state, self.setting)

    def history(self) -> History:
        """d(0), in its two parts."""
        return self.rule.history(self.weight, self.state, self.setting)

    def slope(self) -> Tensor | float:
        """(d(g) - d(0)) / g at the consumed gradient."""
        return self.rule.slope(self.gradient, self.weight, self.state, self.setting)

    def tangent(self) -> Tensor | float:
        """d'(g) at the consumed gradient."""
        return self.rule.tangent(self.gradient, self.weight, self.state, self.setting)

    def linearization(self) -> Tensor | float:
        """The slope at the previous step's moments."""
        return self.rule.linearization(self.weight, self.state, self.setting)

    def linearized_history(self) -> History:
        """d(0) at the previous step's moments."""
        return self.rule.linearized_history(self.weight, self.state, self.setting)

    def steps_taken(self) -> int | None:
        """How many steps the state has seen, or None (see `Rule.steps_taken`)."""
        return self.rule.steps_taken(self.state)
