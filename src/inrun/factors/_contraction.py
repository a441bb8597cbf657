"""How directions meet factors: densely, or through a low rank that is kept honest.

A contraction is asked once a parameter and step. It may remember something of a parameter from one
step to the next, under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

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

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is remembered: whatever JSON holds, and tensors by name."""
        return {}, {}

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Remembers what `state` gave."""


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

    A parameter's error is the root mean square difference of its contributions from the dense ones,
    in units of all parameters' contributions (the root of the sum of their mean squares): what it
    does to a sample's value. A rank is on trial first: values are the dense ones, and the rank is
    admitted where its error stays within an equal part of the tolerance, or else doubled. Once
    admitted it is checked on one sample every 16 steps. Too large an error puts it on trial again,
    one below an eighth of what is allowed puts half the rank on trial.

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
        self._tolerance, self._fixed_rank = tolerance, rank
        self._known: dict[str, dict[int, _Kept]] = {}  # by parameter, then by map of it

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """See `Contraction.contract`."""
        reduced = [factor.reduced(directions_K) for factor in factors]
        found: list[Tensor | None] = [None] * len(factors)
        for number, members in enumerate(_alike([directions for _, directions in reduced])):
            kept = self._known.setdefault(name, {}).setdefault(number, _Kept(self._fixed_rank))
            inner = [reduced[i][0] for i in members]
            values = self._contract_alike(kept, inner, reduced[members[0]][1])
            for i, value in zip(members, values, strict=True):
                found[i] = value
        return [value for value in found if value is not None]

    def _contract_alike(
        self, kept: _Kept, factors: Sequence[Factor], directions_K: Tensor
    ) -> list[Tensor]:
        """Factors that meet the same directions, which are factorized once."""
        kept.calls += 1
        if not kept.waits and not self._pays(kept.rank, factors, directions_K):
            kept.give_up()
        if kept.waits:
            kept.waits -= 1
            return kept.sized([factor.contract(directions_K) for factor in factors])
        low = factorize(_as_matrices(directions_K), kept.start(directions_K), kept.rank)
        kept.right_KNr = low.right
        found = [factor.contract_low_rank(low, directions_K) for factor in factors]
        if not kept.admitted:
            dense = kept.sized([factor.contract(directions_K) for factor in factors])
            kept.trial(found, dense, self._tolerance * self._size)
            return dense
        if kept.calls % CHECK_EVERY == 0:
            sample = kept.calls // CHECK_EVERY
            kept.sized(found)
            kept.check(found, [_one(f, sample, directions_K) for f in factors], sample)
            if self._fixed_rank is None:
                kept.adapt(self._tolerance * self._size)
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Contraction.state`."""
        kept = {f"{n}/{name}": k for name, maps in self._known.items() for n, k in maps.items()}
        bases = {key: k.right_KNr for key, k in kept.items() if k.right_KNr is not None}
        return {key: k.numbers() for key, k in kept.items()}, bases

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See `Contraction.restore`."""
        self._known = {}
        for key, numbers in header.items():
            number, name = key.split("/", 1)
            kept = _Kept(self._fixed_rank)
            kept.take(numbers, tensors.get(key))
            self._known.setdefault(name, {})[int(number)] = kept

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
        rank, error = max(kept.rank for kept in used), sum(kept.error for kept in used) ** 0.5
        size = self._size * sum(len(maps) for maps in self._known.values()) ** 0.5
        return f"rank {rank}, error {error / size if size else 0.0:.2%}"


class _Kept:
    """What is remembered of one parameter, or of one map of it.

    `waits`: how many more steps are dense without a trial. In the first one no parameter knows yet
    what the others contribute.
    """

    def __init__(self, fixed_rank: int | None):
        self._first, self._trusted = fixed_rank or FIRST_RANK, fixed_rank is not None
        self.rank, self.admitted = self._first, self._trusted
        self.calls, self.waits = 0, 0 if fixed_rank else 1
        self.right_KNr: Tensor | None = None
        self.error = self.size = 0.0  # mean squares
        self._patience = 0

    def numbers(self) -> dict[str, Any]:
        """Everything but the tensor."""
        return {n: v for n, v in vars(self).items() if n != "right_KNr"}

    def take(self, numbers: Mapping[str, Any], right_KNr: Tensor | None) -> None:
        """Takes over what `numbers` gave, and the tensor."""
        vars(self).update(numbers)
        self.right_KNr = right_KNr

    @property
    def used(self) -> bool:
        return self.admitted and not self.waits

    def start(self, directions_K: Tensor) -> Tensor | None:
        if self.right_KNr is not None:
            self.right_KNr = self.right_KNr.to(directions_K.device)  # it may come from a checkpoint
        right = self.right_KNr
        fits = right is not None and right.shape[0] == len(directions_K)
        return right if fits and right is not None and right.shape[2] == self.rank else None

    def give_up(self) -> None:
        """No rank that is worth its work suffices: dense for a while, then from the start."""
        self.rank, self.admitted, self.waits = self._first, self._trusted, CHECK_EVERY

    def sized(self, found: list[Tensor]) -> list[Tensor]:
        """Takes note of the contributions' mean square, and gives them back."""
        if self.calls % CHECK_EVERY <= 1 and any(len(values) for values in found):
            self.size = _mean_square(found)
        return found

    def trial(self, found: Sequence[Tensor], dense: Sequence[Tensor], allowed: float) -> None:
        """Admits the rank if all samples' error is small enough, or doubles it."""
        if any(len(values) for values in found):
            self.error = _mean_square([a - b for a, b in zip(found, dense, strict=True)])
            self.admitted = self.error**0.5 <= allowed
            if not self.admitted:
                self._patience = PATIENCE
                self._renew(2 * self.rank)

    def check(self, found: Sequence[Tensor], dense: Sequence[Tensor], sample: int) -> None:
        """Running error of one sample's contributions."""
        differences = [
            values[[sample % len(values)]] - exact
            for values, exact in zip(found, dense, strict=True)
            if len(values)
        ]
        if differences:
            self.error = MEMORY * self.error + (1 - MEMORY) * _mean_square(differences)

    def adapt(self, allowed: float) -> None:
        """Puts another rank on trial where this one's error is too large, or needlessly small."""
        self._patience -= 1
        error = self.error**0.5
        if error > allowed:
            self._patience = PATIENCE
            self._renew(2 * self.rank)
        elif error < allowed / 8 and self.rank > LOWEST_RANK and self._patience <= 0:
            self._renew(self.rank // 2)

    def _renew(self, rank: int) -> None:
        self.rank, self.right_KNr, self.admitted = rank, None, False


def _one(factor: Factor, number: int, directions_K: Tensor) -> Tensor:
    """The dense contributions of one sample, (1, K); of none where there are none."""
    count = factor.samples
    sample = torch.arange(count)[number % count : number % count + 1] if count else torch.arange(0)
    return factor.select(sample.to(directions_K.device)).contract(directions_K)


def _mean_square(values: Sequence[Tensor]) -> float:
    """Over samples and targets."""
    return float(torch.cat([v.reshape(-1) for v in values]).square().mean())


def _alike(directions: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of factors, together where they meet the very same directions."""
    found: dict[int, list[int]] = {}
    for number, tensor in enumerate(directions):
        found.setdefault(id(tensor), []).append(number)
    return list(found.values())


def _as_matrices(directions_K: Tensor) -> Tensor:
    return directions_K.reshape(*directions_K.shape[:2], -1)
