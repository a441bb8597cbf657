"""A direction: what a sample's gradient share is contracted with, for one parameter at one step.

    value_b = <slope^T gradient, share_b>

`slope` comes from the optimizer's rule and the consumed gradient (it contains the learning rate), a
multiplication for elementwise rules; `gradient` from validation passes around the step. Letters:
K targets, B samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from inrun.optim import History, Move, Slope

Game = Literal["shared", "given"]
"""Whose Shapley values the method means: with the past as a player, or with the past always there
(arXiv 2602.00329)."""


class Gradients(NamedTuple):
    """Validation gradients of one parameter, (K, *shape); None where the pass was not asked for.

    `opening` at w_t; `closing` at w_t+1; `null` at w_t after the update without any gradient;
    `curvature` the Hessian at w_t times lr times the consumed gradient.
    """

    opening: Tensor
    closing: Tensor | None = None
    null: Tensor | None = None
    curvature: Tensor | None = None


class Pulled(NamedTuple):
    """What one parameter's direction and history come to, for K targets.

    `direction` (K, *shape), None where no share meets it; `momentum` and `decay` (K,), the
    contributions to the books.
    """

    direction: Tensor | None
    momentum: Tensor
    decay: Tensor


class Direction(ABC):
    """One method. Stateless.

    `by_sample`: whether it is a `SampleDirection`.
    """

    name: ClassVar[str]
    game: ClassVar[Game] = "given"
    needs_null: ClassVar[bool] = False
    needs_curvature: ClassVar[bool] = False
    needs_linearization: ClassVar[bool] = False
    by_sample: ClassVar[bool] = False

    @abstractmethod
    def slope(self, move: Move[Any, Any]) -> Slope:
        """The optimizer's part: a linear map from gradient to displacement."""

    @abstractmethod
    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The validation loss's part, (K, *shape)."""

    def history(self, move: Move[Any, Any]) -> History:
        """What the method says that momentum and decay displaced."""
        return move.history()

    def history_gradient(self, at: Gradients, gradient_K: Tensor) -> Tensor:
        """What the history's displacement is contracted with, (K, *shape).

        Args:
            at: the validation gradients.
            gradient_K: what `gradient` made of them.
        """
        return gradient_K

    def forms_after_step(self, move: Move[Any, Any]) -> bool:
        """Whether `formed_after_step` is defined for this parameter, asked before the step."""
        return False

    def formed_after_step(
        self, after: Move[Any, Any], at: Gradients, scale: float, *, held: bool
    ) -> Pulled:
        """Direction and books of a step that was taken, from nothing that was kept before it.

        Args:
            after: the move with the weight and the state that the step left, and its gradient.
            at: the validation gradients.
            scale: what the direction is to be multiplied by.
            held: whether there are shares for the direction to meet.
        """
        raise NotImplementedError(f"{self.name!r} needs the state before the step.")

    @property
    def streams(self) -> bool:
        """Whether it can be formed inside the backward pass, before the step's other passes."""
        return not (self.needs_null or self.needs_curvature)


class SampleDirection(Direction):
    """A method whose direction differs from sample to sample: it needs the shares themselves."""

    by_sample = True

    @abstractmethod
    def values(self, move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
        """Values (B, K) from this parameter.

        Args:
            move: the step, with tensors that the optimizer has not overwritten.
            shares_B: (B, *shape), scaled so that they sum to the consumed gradient.
            gradient_K: what `gradient` returned.
        """

    @property
    def streams(self) -> bool:
        """Never: all shares of the step must be there at once."""
        return False


def closing_or_opening(at: Gradients) -> Tensor:
    """The closing gradient, or the opening one where the direction is formed before the step."""
    return at.opening if at.closing is None else at.closing
