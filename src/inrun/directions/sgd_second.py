"""In-Run Data Shapley for SGD, second order (Wang et al., ICLR 2025): gV - 1/2 * H_V (lr g).

The interaction of a sample with the others of its step, through the validation loss's Hessian.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inrun.directions._direction import Gradients
from inrun.directions.sgd import SGD
from inrun.optim import Move


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
