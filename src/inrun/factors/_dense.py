"""Shares that are small enough to be built: biases, gains, scalars, and whatever has no rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors._factor import Factor


class Dense(Factor):
    """The shares themselves, (B, *shape of the parameter)."""

    def __init__(self, shares_B: Tensor):
        self._shares_B = shares_B

    @property
    def shape(self) -> torch.Size:
        """Of the parameter."""
        return self._shares_B.shape[1:]

    @property
    def held(self) -> tuple[Tensor, ...]:
        """All B shares."""
        return (self._shares_B,)

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`."""
        B, K = self._shares_B.shape[0], directions_K.shape[0]
        P = self.shape.numel()
        return self.materialize(directions_K.dtype).reshape(B, P) @ directions_K.reshape(K, P).T

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`."""
        return self._shares_B.to(dtype)

    def select(self, samples: Tensor) -> Dense:
        """See `Factor.select`."""
        return Dense(self._shares_B[samples])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Dense:
        """See `Factor.mapped`."""
        return Dense(change(self._shares_B))
