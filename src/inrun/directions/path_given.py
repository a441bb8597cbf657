"""The path from the null update to w_t+1: only the samples form coalitions (given history).

As `path`, with gbar = (gV(w_null) + gV(w_t+1)) / 2, where w_null is w_t after the update without
any gradient, decay included: exact for the game of arXiv 2602.00329, at one more validation pass
a step. Momentum and decay then act from w_t to w_null.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrun.directions._direction import Gradients, closing_or_opening
from inrun.directions.path import Path
from inrun.optim import Move


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
