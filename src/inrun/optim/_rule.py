"""An optimizer's update rule, as pure functions of one parameter's gradient, weight and state.

For a parameter with weight w and state s before the step, an optimizer with consumed gradient g
does w' = w - d(g), and d is all that attribution needs to know about it:

    displacement   d(g)
    history        d(0) = momentum + decay     what the step does without any gradient
    slope          J with J g = d(g) - d(0)    the mean Jacobian of d on the way from 0 to g
    tangent        d'(g)                       its Jacobian at g: the leave-one-out marginal

All of them contain the learning rate. Where d is elementwise the slope is diagonal, (d(g) - d(0)) /
g; where a formula is 0 / 0 because nothing has touched the element yet (no gradient now, none
before), it is 0: no sample moved it. Where d(0) has nothing to divide by (eps = 0) it is 0 too, and
all of d(g) is the gradient's.

What only some rules have stands beside them, as objects that a rule holds or not: `linearized`
(slope and history at the previous step's moments, arXiv 2602.00329), `momentum` (how gradients of
earlier steps still act in this one), `post_step` (slope and history again, told from the state that
the step left behind) and `derivative` (its linear maps, see `_derivative.py`).

A slope J takes a change of the consumed gradient to a change of the displacement. Attribution needs
it transposed: for a validation gradient v, <v, J share_b> = <J^T v, share_b>, so that one pull of v
serves all samples. Letters: K targets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from inrun.optim._derivative import StepDerivative

Live = Mapping[str, Any]
"""A parameter group, or a parameter's state, of a live optimizer."""
State = TypeVar("State")
Setting = TypeVar("Setting")


class Slope(ABC):
    """A linear map from gradients of one parameter to its displacements, learning rate included."""

    @abstractmethod
    def transposed(self, gradient_K: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """J^T v, times a scale, for each of K gradients v.

        Args:
            gradient_K: (K, *shape).
            scale: what a share is multiplied by before J acts, (*shape) or a number.

        Returns:
            (K, *shape), in the gradients' dtype or a wider one.
        """

    @abstractmethod
    def along(self, gradient: Tensor) -> Tensor:
        """J g, (*shape)."""

    def kept(self) -> Slope:
        """The same map, on nothing that the optimizer's step overwrites."""
        return self


class Diagonal(Slope):
    """An elementwise rule's slope: `coefficient` of the parameter's shape, or one number."""

    def __init__(self, coefficient: Tensor | float):
        self.coefficient = coefficient

    def transposed(self, gradient_K: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """See `Slope.transposed`: a product, its own transpose."""
        number = isinstance(scale, float) and scale == 1.0
        return gradient_K * (self.coefficient if number else self.coefficient * scale)

    def along(self, gradient: Tensor) -> Tensor:
        return gradient * self.coefficient


class History(NamedTuple):
    """d(0), split: what momentum does and what weight decay does (each a displacement)."""

    momentum: Tensor | float
    decay: Tensor | float


class Memory(NamedTuple):
    """How the gradients of earlier steps act in a step's null update, where they do so linearly.

    The optimizer remembers M = sum over steps of (what was `kept` since) * `enters` * gradient, and
    momentum displaces `slope` * M, with M as it is before the step.
    """

    slope: Tensor | float
    kept: float
    enters: float


class Linearized(ABC):
    """Slope and history with the previous step's denominator; 0 where that is not defined."""

    @abstractmethod
    def slope(self, w: Tensor, s: Any, h: Any) -> Slope:
        """The slope, which does not depend on the gradient."""

    @abstractmethod
    def history(self, w: Tensor, s: Any, h: Any) -> History:
        """The estimator's own d(0)."""


class Momentum(ABC):
    """Momentum that is linear in earlier gradients."""

    @abstractmethod
    def memory(self, w: Tensor, s: Any, h: Any) -> Memory:
        """How it acts in the step, elementwise; s is the state before it.

        0 where nothing was ever remembered.
        """

    @abstractmethod
    def remembered(self, s: Any) -> Tensor | None:
        """The tensor that earlier gradients are remembered in; None where there is none (yet)."""


class PostStep(ABC):
    """Slope and history of a step that was taken, exact but for the rounding of its state."""

    terms: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """(g, w', *arrays, numbers) -> slope, momentum's displacement, decay's displacement.

    Elementwise, in torch operations that compile into one loop."""

    @abstractmethod
    def defined(self, s: Any, h: Any) -> bool:
        """Whether the state after the step tells enough; s is the state before it."""

    @abstractmethod
    def arrays(self, s: Any) -> tuple[Tensor, ...]:
        """The tensors of the state after the step that `terms` takes."""

    @abstractmethod
    def numbers(self, s: Any, h: Any, scale: float = 1.0) -> tuple[float, ...]:
        """The numbers that `terms` takes, for a slope that is multiplied by `scale`."""


def defined(displaced: Tensor) -> Tensor:
    """0 where it is no number."""
    return torch.where(torch.isfinite(displaced), displaced, 0.0)


def numbers_of(group: Live, *names: str) -> list[float]:
    """A parameter group's numbers, which may be tensors."""
    return [float(group[name]) for name in names]


def steps_seen(state: Live) -> int:
    """How often a live state says it was stepped; 0 where the optimizer has not made one yet."""
    return int(state["step"]) if "step" in state else 0


class Rule(ABC, Generic[State, Setting]):
    """One optimizer's update rule. Stateless: state and setting are arguments.

    A setting is a NamedTuple with `lr`, `decay` and `maximize` among its fields, and `b2` where a
    mean square divides the step; a state is one with `steps` where it counts them.
    """

    linearized: ClassVar[Linearized | None] = None
    momentum: Momentum | None = None
    post_step: ClassVar[PostStep | None] = None
    derivative: ClassVar[StepDerivative | None] = None

    mean_square: ClassVar[str | None] = None
    """The state's field with the mean of squares (with rate `b2`) that divides the step."""

    elementwise: ClassVar[bool] = True
    """Whether each element's displacement depends on that element's gradient alone."""
    rounds: ClassVar[bool] = False
    """Whether the state is rounded after each step, so that what it becomes is not known."""
    advances: ClassVar[bool] = True
    """Whether `advance` is known."""
    jumps: bool = False
    """Whether d is made of steps, as signs are, where no quadrature sees where they lie."""
    affine: bool = False
    """Whether d is affine in g, so that nothing of it is like a sign."""

    def of(self, group: Live) -> Rule[Any, Any]:
        """The rule of a parameter group, where not all groups step alike."""
        return self

    @abstractmethod
    def read(self, group: Live, state: Live, weight: Tensor) -> Any:
        """(state, setting) of one parameter, read from the live optimizer before its step.

        The tensors are the optimizer's own, not copies: they are valid until it steps.
        """

    def reader(self, group: Live) -> Callable[[Live, Tensor], Any]:
        """`read` of one group's parameters, (state, weight) -> (state, setting)."""
        return partial(self.read, group)

    @abstractmethod
    def displacement(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(g) = w - w'."""

    def smooth_displacement(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(g) in the precision of its arguments, where the optimizer itself rounds to less."""
        return self.displacement(g, w, s, h)

    def history(self, w: Tensor, s: State, h: Setting) -> History:
        """d(0), in its two parts: without decay, and what decay adds."""
        whole, undecayed = self.without_gradient(w, s, h), self.without_decay(h)
        momentum = whole if undecayed == h else self.without_gradient(w, s, undecayed)
        return History(momentum, 0.0 if momentum is whole else whole - momentum)

    def without_gradient(self, w: Tensor, s: State, h: Setting) -> Tensor:
        """d(0), and 0 where the formula has nothing to divide by."""
        return defined(self.displacement(torch.zeros_like(w), w, s, h))

    def without_decay(self, h: Setting) -> Setting:
        """The setting of the same optimizer without weight decay, whatever its names here."""
        setting: Any = h
        names = {"decay", "apart", "coupled", "lambd"} & set(setting._fields)
        return cast(Setting, setting._replace(**dict.fromkeys(names, 0.0)))

    @abstractmethod
    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        """The mean Jacobian from 0 to g, without the cancellation that a quotient would suffer."""

    @abstractmethod
    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        """d'(g)."""

    def null_slope(self, w: Tensor, s: State, h: Setting) -> Slope:
        """d'(0), the slope of the null update, which needs no gradient of the step."""
        return self.tangent(torch.zeros_like(w), w, s, h)

    def guarded(self, s: State, h: Setting, square: float) -> State:
        """The state with a gradient of this mean square seen once more in what divides the step.

        The null update of a young or rarely touched element is divided by next to nothing, while
        the step itself is divided by its gradient too.
        """
        state, b2 = cast(Any, s), float(getattr(h, "b2", 0.0))
        if self.mean_square is None or not b2:
            return s
        seen = getattr(state, self.mean_square) + (1 - b2) / b2 * square
        return cast(State, state._replace(**{self.mean_square: seen}))

    @abstractmethod
    def advance(self, g: Tensor, w: Tensor, s: State, h: Setting) -> State:
        """The state after a step with gradient g."""

    def effort(self, shape: torch.Size) -> float:
        """Cost of one displacement per element, in units of an elementwise rule's."""
        return 1.0

    def rate(self, h: Setting) -> float:
        """The learning rate that plain SGD would have here, negative where the rule maximizes."""
        setting: Any = h
        return -float(setting.lr) if setting.maximize else float(setting.lr)

    def steps_taken(self, s: State) -> int | None:
        """How many steps ago the rule acted like a sign of the gradient; None where it never does.

        Adam's first steps are nearly signs, where a straight path says little: they are smoothed.
        """
        return None if self.affine else int(getattr(s, "steps", 0))

    def window(self, s: State, h: Setting) -> float:
        """Over how many gradients what divides the step is averaged: 1 / (1 - b2), or infinite."""
        b2 = float(getattr(h, "b2", 1.0))
        return 1 / (1 - b2) if b2 < 1 else math.inf

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


def entering(g: Tensor, w: Tensor, h: Any) -> Tensor:
    """The gradient as a rule takes it in: its sign, and coupled decay."""
    x = -g if h.maximize else g
    return x + h.decay * w if h.decay else x
