"""The methods: path integrals of the real update, and the published estimators.

`path`, from w_t to w_t+1: the Aumann-Shapley value of the step, with momentum and decay as one more
player (shared history). Its direction is J^T gbar, J the rule's mean Jacobian on the way from no
gradient to g (elementwise D = (u(g) - u(0)) / g), gbar = (gV(w_t) + gV(w_t+1)) / 2. Nothing of the
optimizer is expanded, and what the samples, momentum and decay are given adds up to what the loss
did, but for the error of the trapezoid: that is the ledger's residual.

`path-given`, from the null update to w_t+1: only the samples form coalitions (given history). As
`path`, with gbar = (gV(w_null) + gV(w_t+1)) / 2, where w_null is w_t after the update without any
gradient, decay included: exact for the game of arXiv 2602.00329, at one more validation pass per
step. Momentum and decay then act from w_t to w_null.

The published estimators and the leave-one-out marginal, first or second order at one point:

    sgd         gV                      In-Run Data Shapley for SGD (Wang et al., ICLR 2025)
    sgd-second  gV - 1/2 H_V (lr g)     the same with the samples' interaction through V's Hessian
    linearized  gV * C / A              the Linearized Ghost Approximation (arXiv 2602.00329)
    tangent     gV * u'(g)              the leave-one-out marginal of the real update

`sgd` is exact to first order where the optimizer is plain SGD. In `linearized` C = (1 - b1) /
(1 - b1^t) and A = sqrt(v_hat of step t-1) + eps; its history term, lr * gV . (b1 m / (1 - b1^t) /
A), is the same for all samples and goes to the books. Elements that no gradient has touched before
(v = 0) count 0: there A is eps alone. It is here to be compared with: while v is young and on
rarely touched rows the linearization is off by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.directions._direction import Direction, Game, Gradients, Pulled, closing_or_opening
from inrun.kernels import compiled
from inrun.optim import Diagonal, History, Move, Slope, as_rows, each_piece


class Path(Direction):
    """value_b = <J^T gbar, share_b>."""

    name = "path"
    game: ClassVar[Game] = "shared"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """J, elementwise lr * D."""
        return move.slope()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        return at.opening if at.closing is None else torch.lerp(at.opening, at.closing, 0.5)

    def forms_after_step(self, move: Move[Any, Any]) -> bool:
        """See `Direction.forms_after_step`; never for a subclass, whose gradient may differ."""
        known, kind = move.rule.post_step, move.gradient.dtype
        precise = kind == move.weight.dtype and kind in (torch.float32, torch.float64)
        doubles = move.weight.device.type != "mps"  # the ledger's sums are in double precision
        plain = type(self) is Path and type(move.gradient) is Tensor
        told = known is not None and known.defined(move.state, move.setting)
        return plain and precise and doubles and told

    def formed_after_step(
        self, after: Move[Any, Any], at: Gradients, scale: float, *, held: bool
    ) -> Pulled:
        """See `Direction.formed_after_step`: one pass over all arrays; only the direction stays."""
        known, opening, closing = after.rule.post_step, at.opening, closing_or_opening(at)
        assert known is not None
        directions = opening.new_empty(opening.shape if held else 0)
        numbers = known.numbers(after.state, after.setting, scale / 2)
        rows = zip(*(as_rows(t) for t in (opening, closing)), strict=True)
        arrays = tuple(
            t.detach().reshape(-1)
            for t in (after.gradient, after.weight, *known.arrays(after.state))
        )
        sums = [
            _meet_all(known.terms, arrays, first, last, into, numbers)
            for (first, last), into in zip(rows, _rows_of(directions, len(opening)), strict=True)
        ]
        momentum, decay = torch.stack(sums, 1) if sums else opening.new_zeros(2, 0)
        return Pulled(directions if held else None, momentum, decay)


def _rows_of(directions: Tensor, targets: int) -> list[tuple[Tensor, ...]]:
    """Where each target's direction is written; nothing where it is not held."""
    if len(directions) < targets:
        return [()] * targets
    return [(row.view(-1),) for row in directions]


def _meet(
    terms: Callable[..., tuple[Tensor, Tensor, Tensor]],
    arrays: tuple[Tensor, ...],
    opening: Tensor,
    closing: Tensor,
    into: tuple[Tensor, ...],
    numbers: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """Writes slope times the sum of both gradients; what momentum and decay did, float64.

    All arrays are flat. Compiled where they are large: see `inrun.kernels`.
    """
    slope, momentum, decay = terms(*arrays, numbers)
    twice = opening + closing
    for row in into:
        row.copy_(twice).mul_(slope)
    half = twice.mul_(0.5)
    return momentum.mul_(half).double().sum(), decay.mul_(half).double().sum()


def _meet_all(
    terms: Callable[..., tuple[Tensor, Tensor, Tensor]],
    arrays: tuple[Tensor, ...],
    opening: Tensor,
    closing: Tensor,
    into: tuple[Tensor, ...],
    numbers: tuple[float, ...],
) -> Tensor:
    """`_meet` compiled, or else a piece at a time: (2,) float64, momentum and decay."""
    exact = torch.tensor(numbers, dtype=torch.float64).unbind()
    whole = terms, arrays, opening, closing, into, exact
    fast = compiled(_meet, *whole)
    if fast is not None:
        return torch.stack(fast(*whole))
    sums = opening.new_zeros(2, dtype=torch.float64)
    for first, last, (piece, row) in each_piece((opening, closing, (arrays, into))):
        sums += torch.stack(_meet(terms, piece, first, last, row, numbers))
    return sums


class PathGiven(Path):
    """value_b = <J^T gbar, share_b>, gbar from the null update on."""

    name = "path-given"
    game = "given"
    needs_null = True

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """Mean of the gradient after the null update and the closing one."""
        assert at.null is not None
        return torch.lerp(at.null, closing_or_opening(at), 0.5)

    def history_gradient(self, at: Gradients, gradient_K: Tensor) -> Tensor:
        """Mean of the opening gradient and the one after the null update."""
        assert at.null is not None
        return torch.lerp(at.opening, at.null, 0.5)


class _AtTheOpening(Direction):
    """A method that looks at the validation loss where the step begins."""

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        return at.opening


class SGD(_AtTheOpening):
    """value_b = lr * <gV(w_t), share_b>."""

    name = "sgd"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """The learning rate, against the gradient's sign where the optimizer maximizes."""
        return Diagonal(move.rate())


class SGDSecond(SGD):
    """value_b = lr * <gV - 1/2 H_V (lr g), share_b>."""

    name = "sgd-second"
    needs_curvature = True

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient less half of its change along the step."""
        assert at.curvature is not None
        return at.opening - 0.5 * at.curvature

    def history_gradient(self, at: Gradients, gradient_K: Tensor) -> Tensor:
        """The opening gradient: the interaction belongs to the samples."""
        return at.opening


class Linearized(_AtTheOpening):
    """value_b = lr * <gV * C / A, share_b>."""

    name = "linearized"
    needs_linearization = True

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * C / A, guarded."""
        return move.linearization()

    def history(self, move: Move[Any, Any]) -> History:
        return move.linearized_history()


class Tangent(_AtTheOpening):
    """value_b = lr * <gV(w_t) * u'(g), share_b>."""

    name = "tangent"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * u'(g), a Jacobian where the rule is not elementwise."""
        return move.tangent()
