"""`path` where the update has jumps or corners, which a straight path misses.

Adam's first steps are nearly signs of the gradient; Lion and Rprop are signs; Muon depends on
directions. There a sample's value is its mean marginal displacement among the other samples of the
step, contracted with the mean validation gradient,

    value_b = <gbar, E[d(X + c_b) - d(X)]>,  X the others' partial sum in a random order,

Shapley's value of what the whole update is worth along gbar. It needs the shares themselves. How
the mean is taken, with B samples:

- all 2^B coalitions, where they are fewer than the evaluations of the next way: no approximation;
- for elementwise rules X, after a fraction alpha of the others, is Gaussian: mean alpha (g - c_b),
  variance alpha (1 - alpha) times the sum of the others' squares; Gauss-Legendre quadrature in
  alpha, Gauss-Hermite in X. What that leaves of d(g) - d(0) is divided equally;
- for rules that mix elements or jump, balanced random orders.

Each adds up to what the whole step is worth, so that the ledger closes as it does for `path`.
Letters: B samples, S coalitions. A coalition is a row of zeros and ones, one column per sample.
"""

from __future__ import annotations

from functools import cache
from math import factorial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.directions._direction import Gradients, SampleDirection, closing_or_opening
from inrun.optim import Move, Slope, as_rows, gauss_hermite, gauss_legendre

ALPHAS = 4
DEVIATES = 6
ORDERS = 2 * ALPHAS * DEVIATES  # as many evaluations per sample as the Gaussian's
CHUNK_ELEMENTS = 4_000_000  # of samples times parameters at a time, a few copies of each


def evaluations(samples: int) -> int:
    """How often the update rule is evaluated for a step of so many samples."""
    return int(min(2**samples, ORDERS * samples))


class PathSmoothed(SampleDirection):
    """value_b = <gbar, mean of d(X + c_b) - d(X)>."""

    name = "path-smoothed"
    game = "shared"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """What the whole step is worth per unit of gradient, for the books."""
        return move.slope()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        return torch.lerp(at.opening, closing_or_opening(at), 0.5)

    def values(self, move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
        samples = len(shares_B)
        if not samples:
            return gradient_K.new_zeros(0, gradient_K.shape[0])
        if evaluations(samples) == 2**samples:
            return _enumerated(move, shares_B, gradient_K)
        if move.rule.elementwise and not move.rule.jumps:
            return _gaussian(move, shares_B, gradient_K)
        return _ordered(move, shares_B, gradient_K)


def _worth(move: Move[Any, Any], sums_S: Tensor, gradient_K: Tensor) -> Tensor:
    """<gradient_k, d(sum)> for each of S sums, (S, K)."""
    if move.rule.elementwise:
        moved_S = move.defined_displacement(sums_S)
    else:
        moved_S = torch.stack([move.defined_displacement(x) for x in sums_S])
    return as_rows(moved_S).to(gradient_K.dtype) @ as_rows(gradient_K).T


def _enumerated(move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
    """By every coalition."""
    samples = len(shares_B)
    members_SB = every_coalition(samples).to(shares_B)
    chunk = max(1, CHUNK_ELEMENTS // max(1, shares_B[0].numel()))
    worth_SK = torch.cat(
        [_worth(move, torch.tensordot(part, shares_B, 1), gradient_K)
         for part in members_SB.split(chunk)]
    )  # fmt: skip
    return shapley_weights(samples).to(worth_SK) @ worth_SK


def _ordered(move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
    """By balanced random orders."""
    samples = len(shares_B)
    orders = balanced_orders(samples, ORDERS)
    values_BK = gradient_K.new_zeros(samples, len(gradient_K))
    nothing = _worth(move, torch.zeros_like(shares_B[:1]), gradient_K)
    for order in orders:
        worth_SK = _worth(move, shares_B[list(order)].cumsum(0), gradient_K)
        values_BK[list(order)] += worth_SK - torch.cat([nothing, worth_SK[:-1]])
    return values_BK / len(orders)


def _gaussian(move: Move[Any, Any], shares_B: Tensor, gradient_K: Tensor) -> Tensor:
    """By quadrature over the others' partial sum, taken as Gaussian."""
    samples, flat_KP = len(shares_B), as_rows(gradient_K)
    total, squares = shares_B.sum(0), (shares_B * shares_B).sum(0)
    chunk = max(1, CHUNK_ELEMENTS // max(1, total.numel()))
    rows = [
        as_rows(_mean_marginals(move, part, total, squares)) @ flat_KP.T
        for part in shares_B.split(chunk)
    ]
    values_BK = torch.cat(rows)
    whole_K = flat_KP @ move.slope().along(move.gradient).flatten().to(flat_KP.dtype)
    return values_BK + (whole_K - values_BK.sum(0)) / samples


def _mean_marginals(
    move: Move[Any, Any], shares_B: Tensor, total: Tensor, squares: Tensor
) -> Tensor:
    """E[d(X + c_b) - d(X)] for some samples, elementwise, (B, *shape)."""
    others = total - shares_B
    spread = (squares - shares_B * shares_B).clamp_(min=0).sqrt_()
    mean = torch.zeros_like(shares_B)
    for alpha, weight_a in gauss_legendre(ALPHAS):
        for deviate, weight_z in gauss_hermite(DEVIATES):
            x = alpha * others + (alpha * (1 - alpha)) ** 0.5 * deviate * spread
            marginal = move.defined_displacement(x + shares_B) - move.defined_displacement(x)
            mean.add_(marginal, alpha=weight_a * weight_z)
    return mean


@cache
def every_coalition(samples: int) -> Tensor:
    """All 2^B coalitions, (2^B, B), the empty one first and the whole batch last."""
    numbers = np.arange(2**samples)[:, None]
    return torch.from_numpy((numbers >> np.arange(samples) & 1).astype(np.float64))


@cache
def shapley_weights(samples: int) -> Tensor:
    """What each coalition's worth counts in each sample's Shapley value, (B, 2^B).

    Example:
        >>> shapley_weights(2).tolist()  # coalitions {}, {0}, {1}, {0, 1}
        [[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5]]
    """
    members = every_coalition(samples).numpy().astype(int)
    sizes = members.sum(1)
    whole = factorial(samples)
    joins = [factorial(max(s - 1, 0)) * factorial(samples - s) / whole for s in range(samples + 1)]
    stays = [factorial(s) * factorial(max(samples - s - 1, 0)) / whole for s in range(samples + 1)]
    return torch.from_numpy(
        np.where(members.T == 1, np.array(joins)[sizes], -np.array(stays)[sizes])
    )


@cache
def balanced_orders(samples: int, least: int) -> list[tuple[int, ...]]:
    """At least so many orders of the samples, each sample in each place equally often.

    A random order, all its rotations, and each of them backwards; then the next. The generator is
    its own, so that training's random numbers are left alone.
    """
    generator = np.random.default_rng(0)
    orders: list[tuple[int, ...]] = []
    while len(orders) < least:
        order = generator.permutation(samples)
        for k in range(samples):
            turned = np.roll(order, k)
            orders += [tuple(turned.tolist()), tuple(turned[::-1].tolist())]
    return orders
