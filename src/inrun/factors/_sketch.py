"""Shares in the bases of a direction of low rank: r x r numbers per sample, and nothing else kept.

A direction Q (M x N) that is known before the backward pass is factorized by one step of a power
iteration that starts from the last one's basis,

    L = orth(Q R'),  R = orth(Q^T L),  S = L^T Q R                             (r x r)

and a share C is kept as L^T C R, so that <Q, C> = <S, L^T C R> wherever L and R hold all of Q. Any
later direction Q' meets the same numbers by L^T Q' R; how much of it the bases capture is the ratio
of |L^T Q' R| and |Q'|. Shares that are no larger than a sketch, or no matrices, are kept whole. A
stack of E matrices (experts) has bases, and numbers, of each: shapes below get an axis E after K.
Letters: B samples, K directions, M and N a matrix's axes, P its elements, r the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inrun.factors._factor import Derived, Factor, squared_norms
from inrun.factors._trial import factorize, thin_products

WHOLE = 1024  # elements of a parameter up to which shares are kept themselves

View = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset of a tensor that is a view of a parameter."""


class Basis:
    """One tensor's bases, and its opening directions in them.

    `opening` (K, r, r), or (K, P) where shares are kept whole; `energy` (K,), the directions'
    squared norms.

    Args:
        Q_K: the directions.
        rank: r, where the tensor is large enough for it.
        start_KNr: the right basis of nearby directions, if there is one.
        stacked: whether the parameter is a stack of matrices; a start of one tells it, too.
    """

    def __init__(
        self, Q_K: Tensor, rank: int, start_KNr: Tensor | None = None, *, stacked: bool = False
    ):
        self.whole = Q_K.ndim < 3 or Q_K[0].numel() <= WHOLE
        self.stacked = Q_K.ndim == 4 and (
            stacked or (start_KNr is not None and start_KNr.ndim == 4)
        )
        self.energy = squared_norms(Q_K)
        if self.whole:
            self._dtype = Q_K.dtype
            self.opening = Q_K.reshape(len(Q_K), -1).clone()
            return
        Q_KMN = self._as_matrices(Q_K)
        *stack, M, N = Q_KMN.shape
        rank = min(rank, M, N)
        fits = start_KNr is not None and start_KNr.shape == (*stack, N, rank)
        start = start_KNr.reshape(-1, N, rank) if fits and start_KNr is not None else None
        low = factorize(Q_KMN.reshape(-1, M, N), start, rank)
        self._hold(*(side.reshape(*stack, -1, rank) for side in low))

    def _as_matrices(self, Q_K: Tensor) -> Tensor:
        return Q_K if self.stacked else Q_K.flatten(2)

    def _hold(self, left_KMr: Tensor, right_KNr: Tensor) -> None:
        self.left = left_KMr
        self.right: Tensor = torch.linalg.qr(right_KNr).Q
        self.opening = right_KNr.mT @ self.right

    def followed_by(self, Q_K: Tensor) -> tuple[Tensor, Basis]:
        """Other directions in these bases, as `opening`, and bases of their own that start here.

        Both begin with Q R, which is made once.
        """
        following = object.__new__(Basis)
        following.whole, following.energy = self.whole, squared_norms(Q_K)
        following.stacked = self.stacked
        if self.whole:
            following._dtype, following.opening = Q_K.dtype, Q_K.reshape(len(Q_K), -1).clone()
            return following.opening, following
        Q_KMN = self._as_matrices(Q_K)
        Y_KMr = Q_KMN @ self.right if self.stacked else thin_products(Q_KMN, self.right)
        left: Tensor = torch.linalg.qr(Y_KMr).Q
        following._hold(left, Q_KMN.mT @ left)
        return self.left.mT @ Y_KMr, following

    @property
    def start(self) -> Tensor | None:
        """What the next window's bases start from."""
        return None if self.whole else self.right

    def keep(self, factor: Factor) -> Tensor:
        """What is kept of shares: (B, K, r, r), or (B, P)."""
        if self.whole:
            return factor.materialize(self._dtype).flatten(1)
        return (factor.sketch_stack if self.stacked else factor.sketch)(self.left, self.right)

    def meet(self, kept: Tensor, ends: Tensor) -> Tensor:
        """(B, K): directions in these bases with the shares that were kept."""
        if self.whole:
            return kept @ ends.T
        return torch.einsum("bkp,kp->bk", kept.flatten(2), ends.flatten(1))

    def told(self, shape: torch.Size) -> Tensor:
        """The opening directions as far as the bases hold them, (K, *shape)."""
        if self.whole:
            return self.opening.reshape(-1, *shape)
        return (self.left @ self.opening @ self.right.mT).reshape(-1, *shape)


def view_of(factor: Derived) -> View | None:
    """Which view of the parameter a factor is the shares of; None where it is none."""
    probe = torch.empty(factor.shape, device="meta")
    try:
        found = factor.derive(probe)
    except (RuntimeError, NotImplementedError):  # a tensor of another device takes part
        return None
    if found is not probe and found._base is not probe:
        return None
    return tuple(found.shape), found.stride(), int(found.storage_offset())
