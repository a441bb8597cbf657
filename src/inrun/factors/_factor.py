"""A use's gradient shares, kept as the factors that they are made of.

A *use* is one operation that consumed a parameter. Sample i's share of it is a tensor of the
parameter's shape; a factor holds all B of them without building them, and answers one question:
the inner products with K directions.

Letters: B samples, T positions of a sample, K directions, M and N the share's two axes where it is
a matrix, P its elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.factors import cost
from inrun.factors._trial import LOWEST_RANK, LowRank

LONGEST_ROW = 16_384  # whose sum of squares single precision tells to eight digits


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """Contractions are done and summed in single precision at least."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


class Factor(ABC):
    """Gradient shares of B samples for one parameter, whose `shape` it has.

    `held`: the tensors that it keeps alive, and that must stay as they are; the first has a row
    per sample. A form is made of them and of what `_rest` names.
    """

    _rest: tuple[Any, ...] = ()

    def __init__(self, shape: torch.Size, *held: Tensor):
        self.shape, self.held = shape, held

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

    def sketch(self, left_KMr: Tensor, right_KNr: Tensor) -> Tensor:
        """left_k^T share_b right_k for all b and k, (B, K, r, r), a share read as a matrix.

        Args:
            left_KMr: a basis for each direction, of the parameter's first axis.
            right_KNr: the same of all its other axes together.
        """
        pair = self.coordinates(left_KMr, right_KNr)
        if pair is not None:
            return pair[0].mT @ pair[1]
        one = torch.arange(self.samples)
        shares = [self.select(one[b : b + 1]).total(left_KMr.dtype) for b in range(len(one))]
        sides = left_KMr.mT, right_KNr
        met = [sides[0] @ share.reshape(len(share), -1) @ sides[1] for share in shares]
        nothing = left_KMr.new_zeros(0, len(left_KMr), left_KMr.shape[2], right_KNr.shape[2])
        return torch.stack(met) if met else nothing

    def squares(self, dtype: torch.dtype) -> Tensor:
        """|share_b|^2, (B,), without building shares where that is less work."""
        return _built_squares([self], dtype)

    @property
    def is_stack(self) -> bool:
        """Whether shares are those of a stack of matrices, each of which met rows of its own."""
        return False

    def sketch_stack(self, left_KEMr: Tensor, right_KENr: Tensor) -> Tensor:
        """As `sketch`, of each matrix of a stack (E, M, N) in bases of its own: (B, K, E, r, r)."""
        shares_BEMN = self.materialize(left_KEMr.dtype)
        return left_KEMr.mT @ shares_BEMN.unsqueeze(1) @ right_KENr

    def sketch_stack_of(
        self, owner_P: Tensor, samples: int, left_KEMr: Tensor, right_KENr: Tensor
    ) -> Tensor:
        """As `sketch_stack`, summed over the slots (P,) of each owner."""
        each = self.sketch_stack(left_KEMr, right_KENr)
        return each.new_zeros(samples, *each.shape[1:]).index_add_(0, owner_P, each)

    def coordinates(self, left_KMr: Tensor, right_KNr: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a sketch is the product of, each (B, K, T, r): summed over T, and over slots.

        None of a form whose shares are no sums of outer products.
        """
        return None

    @property
    def samples(self) -> int:
        """B."""
        return len(self.held[0])

    @property
    def positions(self) -> int:
        """How many rows a matrix would have to multiply, B * T where there is one."""
        return 0

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """The shares themselves, (B, *shape of the parameter): large, for few samples or steps.

        Here sample by sample from `total`; each form has one of the two by itself.
        """
        rows = [self.select(torch.tensor([b])).total(dtype) for b in range(self.samples)]
        return torch.stack(rows) if rows else self.held[0].new_zeros(0, *self.shape, dtype=dtype)

    def select(self, samples: Tensor) -> Factor:
        """The shares of these samples alone, in this order; `samples` holds their numbers."""
        return self.mapped(lambda t: t[samples])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Factor:
        """The same shares with each of the held tensors changed, as by a move to another device."""
        form: Any = type(self)
        made: Factor = form(*map(change, self.held), *self._rest)
        return made

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
        return self.contract(direction.reshape(1, *self.shape)).squeeze(1)


class Buildable(Factor):
    """Shares that are built for a block of samples at a time where that is less work."""

    @property
    @abstractmethod
    def each(self) -> int:
        """How many positions a sample has."""

    @abstractmethod
    def push(self, Q: Tensor) -> Tensor:
        """<Q, share_b> for all b, (B,), without building shares."""

    @abstractmethod
    def shares(self, samples: slice, dtype: torch.dtype) -> Tensor:
        """The shares of some samples."""

    def contract(self, directions_K: Tensor) -> Tensor:
        """See `Factor.contract`; the cheaper of two ways, see `inrun.factors.cost`."""
        K, B, size = directions_K.shape[0], self.samples, directions_K.element_size()
        rows, columns = self.shape[0], self.shape[1:].numel()
        if B and cost.materialize_is_cheaper(self.each, rows, columns, K, size):
            flat_KP, block = (
                directions_K.reshape(K, -1),
                cost.samples_per_block(rows * columns, size),
            )
            blocks = [slice(b, b + block) for b in range(0, B, block)]
            return torch.cat(
                [self.shares(b, directions_K.dtype).flatten(1) @ flat_KP.T for b in blocks]
            )
        pushed = [self.push(Q) for Q in directions_K]
        return torch.stack(pushed, 1) if pushed else directions_K.new_zeros(B, 0)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        return self.shares(slice(None), dtype)


class Dense(Factor):
    """The shares themselves, (B, *shape): biases, gains, scalars, and whatever has no rule."""

    def __init__(self, shares_B: Tensor):
        super().__init__(shares_B.shape[1:], shares_B)
        self._shares_B = shares_B

    def contract(self, directions_K: Tensor) -> Tensor:
        B, K = self._shares_B.shape[0], directions_K.shape[0]
        P = self.shape.numel()
        return self.materialize(directions_K.dtype).reshape(B, P) @ directions_K.reshape(K, P).T

    def sketch(self, left_KMr: Tensor, right_KNr: Tensor) -> Tensor:
        shares = self._shares_B.to(left_KMr.dtype).flatten(2).unsqueeze(1)
        return left_KMr.mT @ shares @ right_KNr

    def materialize(self, dtype: torch.dtype) -> Tensor:
        return self._shares_B.to(dtype)


def squared_norms(t_K: Tensor) -> Tensor:
    """(K,), without a copy of the squares; of matrices the sum of rows', twice as fast on a CPU."""
    if t_K.ndim > 2 and t_K.shape[2:].numel() <= LONGEST_ROW:
        norms: Tensor = torch.linalg.vector_norm(t_K.flatten(2), dim=2)
        return norms.square().sum(1)
    rows = t_K.reshape(len(t_K), t_K.shape[1:].numel())
    squared: Tensor = torch.linalg.vecdot(rows, rows)
    return squared


def share_squares(
    factors: Sequence[Factor], dtype: torch.dtype, scale: Tensor | float = 1.0
) -> Tensor:
    """|scale * share_b|^2, (B,), of one parameter, a share being the sum over its uses.

    Args:
        factors: of the uses, at least one.
        dtype: in which it is computed.
        scale: a number, or elementwise (*shape of the parameter).
    """
    if len(factors) == 1 and not (isinstance(scale, Tensor) and scale.ndim):
        return factors[0].squares(dtype) * scale**2
    return _built_squares(factors, dtype, scale)


def _built_squares(
    factors: Sequence[Factor], dtype: torch.dtype, scale: Tensor | float = 1.0
) -> Tensor:
    """The same from the shares themselves, a block of samples at a time."""
    one, device = factors[0], factors[0].held[0].device
    block = max(1, cost.samples_per_block(one.shape.numel(), dtype.itemsize, cost.CACHED_BYTES))
    squares = [torch.zeros(0, dtype=dtype, device=device)]
    for some in torch.arange(one.samples, device=device).split(block):
        shares = one.select(some).materialize(dtype)
        for other in factors[1:]:
            shares = shares + other.select(some).materialize(dtype)
        squares.append(squared_norms(shares * scale))
    return torch.cat(squares)


def shares_are_less(factor: Factor) -> bool:
    """Whether the shares themselves are half of what is held at most, and cheap to build.

    Cheap is no more work than what it replaces: held operands that meet a direction of low rank.
    """
    held = sum(t.numel() for t in factor.held)
    share = factor.shape.numel()
    cheap = factor.positions * share <= LOWEST_RANK * held
    return isinstance(factor, Dense) or (cheap and 2 * factor.samples * share <= held)


class Derived(Factor):
    """A parameter that was used through a linear map of it: a slice, a view, a cast, a row.

    `inner`: the shares of what came of the map.

    With s = L p the tensor that the operation really consumed, <Q, share_p> = <L Q, share_s>: the
    direction is pushed through the map and meets the shares of s.
    """

    def __init__(self, shape: torch.Size, linear_map: Callable[[Tensor], Tensor], inner: Factor):
        super().__init__(shape, *inner.held)
        self._map, self.inner = linear_map, inner

    @property
    def samples(self) -> int:
        """B, which where slots lie anywhere is not their number."""
        return self.inner.samples

    @property
    def is_stack(self) -> bool:
        """See `Factor.is_stack`."""
        return self.inner.is_stack

    def contract(self, directions_K: Tensor) -> Tensor:
        inner, pushed_K = self.reduced(directions_K)
        return inner.contract(pushed_K)

    def derive(self, direction: Tensor) -> Tensor:
        """L p, of anything that has the parameter's shape."""
        return self._map(direction)

    def reduced(self, directions_K: Tensor) -> tuple[Factor, Tensor]:
        """See `Factor.reduced`: the directions are pushed through the map."""
        pushed = [self._map(Q).to(Q.dtype) for Q in directions_K]
        none = directions_K.new_zeros(0, *self.inner.shape)
        return self.inner.reduced(torch.stack(pushed) if pushed else none)

    def materialize(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.materialize`: the map's transpose, one sample at a time."""
        return self._pulled(self.inner.materialize(dtype))

    def select(self, samples: Tensor) -> Derived:
        return Derived(self.shape, self._map, self.inner.select(samples))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Derived:
        return Derived(self.shape, self._map, self.inner.mapped(change))

    def total(self, dtype: torch.dtype) -> Tensor:
        """See `Factor.total`: the map is linear, so one sum goes through its transpose."""
        return self._pulled(self.inner.total(dtype).unsqueeze(0))[0]

    def _pulled(self, shares: Tensor) -> Tensor:
        """The map's transpose of each."""
        with torch.enable_grad():
            p = torch.zeros(
                self.shape, dtype=shares.dtype, device=shares.device, requires_grad=True
            )
            s = self._map(p)
        pulled = [
            torch.autograd.grad(s, p, share.to(s.dtype), retain_graph=True)[0] for share in shares
        ]
        return torch.stack(pulled) if pulled else shares.new_zeros(0, *self.shape)
