"""`path` for the first steps, where Adam acts like a sign and a straight path misses the corner.

A sample meets the others in random order. For one element, with c_b its share and g the sum of all
shares, the others' partial sum after a fraction alpha of them is taken as Gaussian, mean
alpha (g - c_b), variance alpha (1 - alpha) sum of the others' c_j^2, and the sample is given the
mean over alpha and over that Gaussian of d(X + c_b) - d(X): Shapley's value of the element's game
under that approximation. Quadrature: Gauss-Legendre in alpha, Gauss-Hermite in X. It needs the
shares themselves. What the approximation leaves of d(g) - d(0) is divided equally among the
samples, so that the books close as they do for `path`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inrun.directions._direction import Gradients, SampleDirection, closing_or_opening
from inrun.optim import Move, Slope, gauss_hermite, gauss_legendre

ALPHAS = 4
DEVIATES = 6
CHUNK_ELEMENTS = 4_000_000  # of samples times parameters at a time, a few copies of each


class PathSmoothed(SampleDirection):
    """value_b = <gbar, mean of d(X + c_b) - d(X)>."""

    name = "path-smoothed"
    game = "shared"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """What the whole step is worth per unit of gradient, for the books."""
        return move.slope()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """Mean of the opening and the closing gradient."""
        return (at.opening + closing_or_opening(at)) / 2

    def values(self, move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
        """See `SampleDirection.values`."""
        samples, flat_KP = len(shares_B), gradient_K.reshape(len(gradient_K), -1)
        total, squares = shares_B.sum(0), (shares_B * shares_B).sum(0)
        chunk = max(1, CHUNK_ELEMENTS // max(1, total.numel()))
        rows = [
            self._mean_marginals(move, part, total, squares).reshape(len(part), -1) @ flat_KP.T
            for part in shares_B.split(chunk)
        ]
        if not samples:
            return gradient_K.new_zeros(0, gradient_K.shape[0])
        values_BK = torch.cat(rows)
        whole_K = flat_KP @ move.slope().along(move.gradient).flatten().to(flat_KP.dtype)
        return values_BK + (whole_K - values_BK.sum(0)) / samples

    def _mean_marginals(
        self, move: Move[Any, Any], shares_B: Tensor, total: Tensor, squares: Tensor
    ) -> Tensor:
        """E[d(X + c_b) - d(X)] for some samples, elementwise, (B, *shape)."""
        others = total - shares_B
        spread = (squares - shares_B * shares_B).clamp_(min=0).sqrt_()
        mean = torch.zeros_like(shares_B)
        for alpha, weight_a in gauss_legendre(ALPHAS):
            for deviate, weight_z in gauss_hermite(DEVIATES):
                x = alpha * others + (alpha * (1 - alpha)) ** 0.5 * deviate * spread
                marginal = move.displacement(x + shares_B) - move.displacement(x)
                mean.add_(marginal, alpha=weight_a * weight_z)
        return mean
