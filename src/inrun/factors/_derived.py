"""Shares of a parameter that was used through a linear map of it: a slice, a view, a cast, a row.

With s = L p the tensor that the operation really consumed, <Q, share_p> = <L Q, share_s>: the
direction is pushed through the map and meets the shares of s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors._factor import Factor


class Derived(Factor):
    """A linear map from a parameter of the given shape to s, and the shares of s."""

    def __init__(self, shape: torch.Size, linear_map: Callable[[Tensor], Tensor], inner: Factor):
        self._shape, self._map, self._inner = shape, linear_map, inner

    @property
    def shape(self) -> torch.Size:
        """Of the parameter."""
        return self._shape

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Of the shares of s."""
        return self._inner.held

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`."""
        inner, pushed_K = self.reduced(directions_K)
        return inner.contract(pushed_K)

    def reduced(self, directions_K: Tensor) -> tuple[Factor, Tensor]:
        """See `Factor.reduced`: the directions are pushed through the map."""
        pushed = [self._map(Q).to(Q.dtype) for Q in directions_K]
        none = directions_K.new_zeros(0, *self._inner.shape)
        return self._inner.reduced(torch.stack(pushed) if pushed else none)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`: the map's transpose, a sample at a time."""
        return self._pulled(self._inner.materialize(dtype))

    def select(self, samples: Tensor) -> Derived:
        """See `Factor.select`."""
        return Derived(self._shape, self._map, self._inner.select(samples))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Derived:
        """See `Factor.mapped`."""
        return Derived(self._shape, self._map, self._inner.mapped(change))

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: the map is linear, so one sum goes through its transpose."""
        return self._pulled(self._inner.total(dtype).unsqueeze(0))[0]

    def _pulled(self, shares: Tensor) -> Tensor:
        """The map's transpose of each."""
        with torch.enable_grad():
            p = torch.zeros(
                self._shape, dtype=shares.dtype, device=shares.device, requires_grad=True
            )
            s = self._map(p)
        pulled = [
            torch.autograd.grad(s, p, share.to(s.dtype), retain_graph=True)[0] for share in shares
        ]
        return torch.stack(pulled) if pulled else shares.new_zeros(0, *self._shape)
