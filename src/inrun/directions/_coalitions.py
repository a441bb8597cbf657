"""Coalitions of a step's samples, for directions that evaluate the update at partial sums.

Letters: B samples, S coalitions. A coalition is a row of zeros and ones, one column a sample.
"""

from __future__ import annotations

from functools import cache
from math import factorial

import numpy as np
import torch
from torch import Tensor


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
