"""In-Run Data Shapley for SGD, first order (Wang et al., ICLR 2025): the direction is gV.

Exact to first order where the optimizer is plain SGD; under Adam it is the estimator that the
adaptive ones are compared with.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inrun.directions._direction import Direction, Gradients
from inrun.optim import Diagonal, Move, Slope


class SGD(Direction):
    """value_b = lr * <gV(w_t), share_b>."""

    name = "sgd"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """The learning rate, against the gradient's sign where the optimizer maximizes."""
        return Diagonal(move.rate())

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient."""
        return at.opening
