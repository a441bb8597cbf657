"""Directions of low rank: Q_k ~ L_k R_k^T, so that a share is met by two thin products.

After preconditioning a validation gradient has few large singular values. A randomized range finder
(Halko, Martinsson, Tropp, 2011) reads Q twice:

    Y = Q start,  L = orth(Y),  R = Q^T L

and the next step starts from this step's R: the directions of two neighbouring steps nearly share
their range. Letters: K directions, M and N the two axes of a matrix parameter, r the rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """K directions as products: left (K, M, r) with orthonormal columns, right (K, N, r)."""

    left: Tensor
    right: Tensor


def factorize(Q_KMN: Tensor, start_KNr: Tensor | None, rank: int) -> LowRank:
    """The directions' best products within the range that a start shows.

    Args:
        Q_KMN: the directions.
        start_KNr: the right factors of nearby directions; None for random ones, with one more pass.
        rank: r, at most min(M, N).
    """
    if start_KNr is None:
        generator = torch.Generator(Q_KMN.device).manual_seed(0)
        shape = (Q_KMN.shape[0], Q_KMN.shape[2], rank)
        random = torch.randn(shape, generator=generator, device=Q_KMN.device, dtype=Q_KMN.dtype)
        start_KNr = Q_KMN.mT @ _orthonormal(Q_KMN @ random)
    left = _orthonormal(Q_KMN @ start_KNr)
    return LowRank(left, Q_KMN.mT @ left)


def _orthonormal(Y: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(Y).Q
    return basis
