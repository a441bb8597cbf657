"""Gauss quadrature: where to evaluate, and with what weight."""

from __future__ import annotations

from functools import cache

import numpy as np

Nodes = list[tuple[float, float]]
"""(place, weight), the weights summing to 1."""


@cache
def gauss_legendre(count: int) -> Nodes:
    """For the mean over [0, 1]; exact for polynomials of degree up to 2 * count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return [(float(0.5 * (x + 1)), float(0.5 * w)) for x, w in zip(nodes, weights, strict=True)]


@cache
def gauss_hermite(count: int) -> Nodes:
    """For the mean of a standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return [(float(x), float(w / np.sqrt(2 * np.pi))) for x, w in zip(nodes, weights, strict=True)]
