"""The published estimators and the leave-one-out marginal: first or second order at one point.

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

from typing import Any

from torch import Tensor

from inrun.directions._direction import Direction, Gradients
from inrun.optim import Diagonal, History, Move, Slope


class _AtTheOpening(Direction):
    """A method that looks at the validation loss where the step begins."""

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient."""
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
        """The estimator's own history term."""
        return move.linearized_history()


class Tangent(_AtTheOpening):
    """value_b = lr * <gV(w_t) * u'(g), share_b>."""

    name = "tangent"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * u'(g), a Jacobian where the rule is not elementwise."""
        return move.tangent()
