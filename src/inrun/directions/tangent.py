"""First order at the batch gradient: gV * u'(g), the leave-one-out marginal of the real update."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inrun.directions._direction import Direction, Gradients
from inrun.optim import Move


class Tangent(Direction):
    """value_b = lr * <gV(w_t) * u'(g), share_b>."""

    name = "tangent"

    def coefficient(self, move: Move[Any, Any]) -> Tensor | float:
        """Lr * u'(g)."""
        return move.tangent()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient."""
        return at.opening
