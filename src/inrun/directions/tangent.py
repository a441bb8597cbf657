"""First order at the batch gradient: gV * u'(g), the leave-one-out marginal of the real update."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inrun.directions._direction import Direction, Gradients
from inrun.optim import Move, Slope


class Tangent(Direction):
    """value_b = lr * <gV(w_t) * u'(g), share_b>."""

    name = "tangent"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * u'(g), a Jacobian where the rule is not elementwise."""
        return move.tangent()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient."""
        return at.opening
