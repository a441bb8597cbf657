"""The Linearized Ghost Approximation of arXiv 2602.00329: gV * C / A.

C = (1 - b1) / (1 - b1^t), A = sqrt(v_hat of step t-1) + eps. Its history term,
lr * gV . (b1 m / (1 - b1^t) / A), is the same for all samples and goes to the books. Elements that
no gradient has touched before (v = 0) count 0: there A is eps alone. It is here to be compared
with: while v is young and on rarely touched rows the linearization is off by orders of magnitude.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inrun.directions._direction import Direction, Gradients
from inrun.optim import History, Move, Slope


class Linearized(Direction):
    """value_b = lr * <gV * C / A, share_b>."""

    name = "linearized"
    needs_linearization = True

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * C / A, guarded."""
        return move.linearization()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """The opening gradient."""
        return at.opening

    def history(self, move: Move[Any, Any]) -> History:
        """The estimator's own history term."""
        return move.linearized_history()
