"""The path integral of the real update through the real loss, from w_t to w_t+1.

The Aumann-Shapley value of the step, with momentum and decay as one more player (shared history):
direction J^T gbar, J the rule's mean Jacobian on the way from no gradient to g (elementwise
D = (u(g) - u(0)) / g), gbar = (gV(w_t) + gV(w_t+1)) / 2. Nothing of the optimizer is expanded, and
what the samples, momentum and decay are given adds up to what the loss did, but for the error of
the trapezoid: that is the books' residual.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.directions._direction import Direction, Game, Gradients, closing_or_opening
from inrun.optim import Move, Slope


class Path(Direction):
    """value_b = <J^T gbar, share_b>."""

    name = "path"
    game: ClassVar[Game] = "shared"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """J, elementwise lr * D."""
        return move.slope()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """Mean of the opening and the closing gradient."""
        return torch.lerp(at.opening, closing_or_opening(at), 0.5)
