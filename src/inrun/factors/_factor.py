"""A use's gradient shares, kept as the factors that they are made of.

A *use* is one operation that consumed a parameter. Sample i's share of it is a tensor of the
parameter's shape; a factor holds all B of them without building them, and answers one question:
the inner products with K directions.

Letters: B samples, T positions of a sample, K directions, M and N the share's two axes where it is
a matrix, P its elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from inrun.factors._low_rank import LowRank


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """Contractions are done and summed in single precision at least."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


class Factor(ABC):
    """Gradient shares of B samples for one parameter."""

    @abstractmethod
    def contract(self, directions_K: Tensor) -> Tensor:
        """<direction_k, share_b> for all b and k.

        Args:
            directions_K: (K, *shape of the parameter).

        Returns:
            (B, K) in the directions' dtype, in which the products are also summed.
        """

    def reduced(self, directions_K: Tensor) -> tuple[Factor, Tensor]:
        """A factor without a linear map around it, and the directions that it is to meet."""
        return self, directions_K

    def contract_low_rank(self, low: LowRank, directions_K: Tensor) -> Tensor:
        """The same through directions of low rank, where that is less work for this form.

        Args:
            low: the directions as products.
            directions_K: the directions themselves.
        """
        return self.contract(directions_K)

    @property
    def samples(self) -> int:
        """B."""
        return len(self.held[0])

    @property
    def positions(self) -> int:
        """How many rows a matrix would have to multiply, B * T where there is one."""
        return 0

    @abstractmethod
    def materialize(self, dtype: torch.dtype) -> Tensor:
        """The shares themselves, (B, *shape of the parameter): large, for few samples or steps."""

    @abstractmethod
    def select(self, samples: Tensor) -> Factor:
        """The shares of these samples alone, in this order; `samples` holds their numbers."""

    @abstractmethod
    def mapped(self, change: Callable[[Tensor], Tensor]) -> Factor:
        """The same shares with each of the held tensors changed, as by a move to another device."""

    def on(self, device: torch.device) -> Factor:
        """The same shares, held on a device: itself where they are there."""
        if all(t.device == device for t in self.held):
            return self
        return self.mapped(lambda t: t.to(device))

    def total(self, dtype: torch.dtype) -> Tensor:
        """The sum of the shares, (*shape of the parameter)."""
        return self.materialize(dtype).sum(0)

    def contract_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """<left right^T, share_b>, (B,), the parameter read as a matrix of its first axis by rest.

        Args:
            left: (first axis,).
            right: (all other axes,); of shape (1,) for a vector parameter.
        """
        direction = torch.outer(left, right.reshape(-1)).reshape(left.shape + right.shape)
        shape = self.shape
        return self.contract(direction.reshape(1, *shape)).squeeze(1)

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The parameter's shape."""

    @property
    @abstractmethod
    def held(self) -> tuple[Tensor, ...]:
        """The tensors that this factor keeps alive, and that must stay as they are."""
