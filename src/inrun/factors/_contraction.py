"""How directions meet factors: densely, or through a low rank that is kept honest.

A contraction is asked once a parameter and step. It may remember something of a parameter from one
step to the next, under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.factors import cost
from inrun.factors._factor import Factor
from inrun.factors._low_rank import factorize

FIRST_RANK, LOWEST_RANK = 16, 4
CHECK_EVERY = 16  # steps between comparisons with the dense contraction, on one sample
PATIENCE = 10  # comparisons before a rank that was not enough is tried again
MEMORY = 0.8  # of an earlier comparison in the running error


class Contraction(ABC):
    """A strategy; one object a run."""

    @abstractmethod
    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """<direction_k, share_b> for each factor of one parameter, each (B, K).

        Args:
            name: of the parameter.
            factors: of one step or a part of it.
            directions_K: (K, *shape).
        """

    @abstractmethod
    def describe(self, name: str) -> str:
        """How a parameter is contracted now, in a few words."""


class DenseContraction(Contraction):
    """Every direction through every position: exact."""

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """See `Contraction.contract`."""
        return [factor.contract(directions_K) for factor in factors]

    def describe(self, name: str) -> str:
        """See `Contraction.describe`."""
        return "dense"


class LowRankContraction(Contraction):
    """Through a low rank where that costs less, with its error measured.

    Every 16 steps one sample is also contracted densely. A parameter's error is the running root
    mean square difference of its contributions, in units of all parameters' contributions (the
    root of the sum of their mean squares): what it does to a sample's value. Where an equal part of
    the tolerance is not enough for it, the rank doubles; where an eighth of that would do, the rank
    is halved, though not soon after it was too low.

    Args:
        tolerance: relative error of values that is accepted, errors of parameters adding up as
            independent ones do.
        rank: a fixed rank instead; the error is measured all the same.

    Raises:
        MisuseError: numbers out of range.
    """

    def __init__(self, tolerance: float = 0.01, rank: int | None = None):
        if not 0 < tolerance < 1 or (rank is not None and rank < 1):
            raise MisuseError(
                f"A low rank needs a tolerance between 0 and 1 and a rank of at least 1, not "
                f"tolerance={tolerance}, rank={rank}."
            )
        self._tolerance, self._adapts = tolerance, rank is None
        self._first_rank = rank or FIRST_RANK
        self._known: dict[str, dict[int, _Kept]] = {}  # by parameter, then by map of it

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """See `Contraction.contract`."""
        reduced = [factor.reduced(directions_K) for factor in factors]
        found: list[Tensor | None] = [None] * len(factors)
        for number, members in enumerate(_alike([directions for _, directions in reduced])):
            kept = self._known.setdefault(name, {}).setdefault(number, _Kept(self._first_rank))
            inner = [reduced[i][0] for i in members]
            values = self._contract_alike(kept, inner, reduced[members[0]][1])
            for i, value in zip(members, values, strict=True):
                found[i] = value
        return [value for value in found if value is not None]

    def _contract_alike(
        self, kept: _Kept, factors: Sequence[Factor], directions_K: Tensor
    ) -> list[Tensor]:
        """Factors that meet the same directions, which are factorized once."""
        kept.used = self._pays(kept.rank, factors, directions_K)
        if kept.used:
            low = factorize(_as_matrices(directions_K), kept.start(directions_K), kept.rank)
            kept.right_KNr = low.right
            found = [factor.contract_low_rank(low, directions_K) for factor in factors]
        else:
            found = [factor.contract(directions_K) for factor in factors]
        turn = kept.calls % CHECK_EVERY
        kept.calls += 1
        if turn < 2:  # twice, so that the second time all parameters' sizes are known
            kept.compare(factors, directions_K, found)
            if turn == 1 and kept.used and self._adapts:
                kept.adapt(self._tolerance, self._size)
        return found

    @property
    def _size(self) -> float:
        """All contributions' size, divided among the parameters."""
        kept = [k for maps in self._known.values() for k in maps.values()]
        return float((sum(k.size for k in kept) / len(kept)) ** 0.5)

    @staticmethod
    def _pays(rank: int, factors: Sequence[Factor], directions_K: Tensor) -> bool:
        if directions_K.ndim < 3 or not len(directions_K):
            return False
        M, N = directions_K.shape[1], directions_K.shape[2:].numel()
        positions = sum(factor.positions for factor in factors)
        return rank < min(M, N) and cost.low_rank_is_cheaper(
            positions, M, N, len(directions_K), rank
        )

    def describe(self, name: str) -> str:
        """See `Contraction.describe`."""
        used = [kept for kept in self._known.get(name, {}).values() if kept.used]
        if not used:
            return "dense"
        rank = max(kept.rank for kept in used)
        error = sum(kept.difference for kept in used) ** 0.5
        size = self._size * sum(len(maps) for maps in self._known.values()) ** 0.5
        return f"rank {rank}, error {error / size if size else 0.0:.2%}"


class _Kept:
    """What is remembered of one parameter."""

    def __init__(self, rank: int):
        self.rank, self.calls, self.used = rank, 0, False
        self.right_KNr: Tensor | None = None
        self.difference = self.size = 0.0
        self._patience = 0

    def start(self, directions_K: Tensor) -> Tensor | None:
        right = self.right_KNr
        fits = right is not None and right.shape[0] == len(directions_K)
        return right if fits and right is not None and right.shape[2] == self.rank else None

    def compare(
        self, factors: Sequence[Factor], directions_K: Tensor, found: Sequence[Tensor]
    ) -> None:
        """Running mean squares: of the contributions, and of their error on one sample."""
        samples = sum(len(values) for values in found)
        if not samples:
            return
        size = sum(float(values.square().sum()) for values in found) / samples
        self.size = size if self.calls == 1 else MEMORY * self.size + (1 - MEMORY) * size
        if not self.used:
            self.difference = 0.0
            return
        errors = []
        for factor, values in zip(factors, found, strict=True):
            if len(values):
                sample = torch.tensor([self.calls % len(values)], device=values.device)
                dense = factor.select(sample).contract(directions_K)
                errors.append(float((dense - values[sample]).square().sum()))
        error = sum(errors) / len(errors)
        first = self.calls == 1 or self.difference == 0
        self.difference = error if first else MEMORY * self.difference + (1 - MEMORY) * error

    def adapt(self, tolerance: float, size: float) -> None:
        """Another rank, where the error is not what the tolerance allows."""
        self._patience -= 1
        error = self.difference**0.5
        if error > tolerance * size:
            self._patience = PATIENCE
            self._renew(2 * self.rank)
        elif error < tolerance * size / 8 and self.rank > LOWEST_RANK and self._patience <= 0:
            self._renew(self.rank // 2)

    def _renew(self, rank: int) -> None:
        """What was measured and found at the old rank does not count any more."""
        self.rank, self.right_KNr, self.difference = rank, None, 0.0
        self.calls -= self.calls % CHECK_EVERY  # compared again at once


def _alike(directions: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of factors, together where they meet the very same directions."""
    found: dict[int, list[int]] = {}
    for number, tensor in enumerate(directions):
        found.setdefault(id(tensor), []).append(number)
    return list(found.values())


def _as_matrices(directions_K: Tensor) -> Tensor:
    return directions_K.reshape(*directions_K.shape[:2], -1)
