"""Rules that mix a parameter's elements: their slope is a Jacobian, pulled back by autograd.

Orthogonalization, trust ratios, factored moments and update clipping make every element of the
displacement d depend on every element of the gradient. The slope of the path from 0 to g is then

    J = mean over alpha in [0, 1] of d'(alpha g)  +  (d(g) - d(0) - J0 g) g^T / |g|^2

with J0 that mean by Gauss-Legendre quadrature. The second term, of rank one, is what quadrature
misses of J g = d(g) - d(0), and puts it along g: the ledger closes for any number of nodes. It is
the whole of J where d depends on the direction of g alone and jumps at 0. Letters: K targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.optim._move import Move, as_rows
from inrun.optim._rule import Rule, Setting, Slope, State

Nodes = list[tuple[float, float]]
"""(place, weight), the weights summing to 1."""

NODES = 5  # three miss rows whose first gradient saturates a factored moment early on the path


class Jacobian(Slope):
    """The mean of d' over points alpha * g; with `secant` also exact along g itself."""

    def __init__(self, move: Move[Any, Any], nodes: Nodes, *, secant: bool):
        self._move, self._nodes, self._secant = move, nodes, secant

    def kept(self) -> Slope:
        """On copies: the optimizer overwrites its moments."""
        return Jacobian(self._move.frozen(), self._nodes, secant=self._secant)

    def _displacement(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The smooth d, in the contraction's precision."""
        return self._move.to(dtype).smooth_displacement

    def transposed(self, gradient_K: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """See `Slope.transposed`: a vector-Jacobian product per node."""
        d, g = self._displacement(gradient_K.dtype), self._move.gradient.to(gradient_K.dtype)
        pulled_K = torch.zeros_like(gradient_K)
        for alpha, weight in self._nodes:
            pull = torch.func.vjp(d, alpha * g)[1]
            pulled_K.add_(torch.stack([pull(v)[0] for v in gradient_K]), alpha=weight)
        if self._secant:
            missing_K = as_rows(gradient_K) @ (d(g) - d(torch.zeros_like(g))).flatten()
            missing_K -= as_rows(pulled_K) @ g.flatten()
            pulled_K += torch.einsum("k,...->k...", missing_K, _over_its_square(g))
        return pulled_K * scale

    def along(self, gradient: Tensor) -> Tensor:
        """See `Slope.along`: a Jacobian-vector product per node."""
        d, g = self._displacement(gradient.dtype), self._move.gradient.to(gradient.dtype)

        def mean(direction: Tensor) -> Tensor:
            pushed = [w * torch.func.jvp(d, (a * g,), (direction,))[1] for a, w in self._nodes]
            return torch.stack(pushed).sum(0)

        moved = mean(gradient)
        if self._secant:
            missing = d(g) - d(torch.zeros_like(g)) - mean(g)
            moved = moved + missing * (_over_its_square(g) * gradient).sum()
        return moved


def _over_its_square(g: Tensor) -> Tensor:
    """G / |g|^2, and 0 for g = 0."""
    square = (g * g).sum()
    return torch.where(square == 0, torch.zeros_like(g), g / square)


class MatrixRule(Rule[State, Setting]):
    """A rule whose elements depend on each other: `displacement` must be differentiable in g."""

    elementwise = False

    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        """See `Rule.slope`; the quadrature's nodes lie between 0 and g."""
        return Jacobian(Move(self, w, g, s, h), gauss_legendre(NODES), secant=True)

    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Slope:
        return Jacobian(Move(self, w, g, s, h), [(1.0, 1.0)], secant=False)


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
