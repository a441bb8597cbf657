"""How directions meet factors: densely, or through a low rank that is kept honest.

A contraction is asked for each parameter in turn, and told when a step is over. It may remember
something of a parameter from one step to the next, under its name.
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

LOWEST_RANK = 16  # and the first: thin products of 8 columns take as long
CHECK_EVERY = 16  # steps between comparisons with the dense contraction, on one sample
PATIENCE = 5  # comparisons before a rank that was not enough is tried again
MEMORY = 0.5  # of an earlier comparison in the running error
WARM_UP = 4  # steps that are dense: an optimizer's first directions are not like its later ones


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

    def end_step(self) -> None:  # noqa: B027 - most have nothing to do
        """All parameters of a step were contracted."""

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
    in units of all parameters' contributions to the same step (the root of the sum of their mean
    squares): what it does to a sample's value. After four dense steps a rank is on trial: values
    are the dense ones, and it is admitted if all errors together stay within the tolerance; or else
    the largest of them put twice the rank on trial. Once admitted a rank is checked on one sample
    every 16 steps, and one that is better by far than it needs to be puts half of it on trial.

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
        self._steps = 0

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """See `Contraction.contract`."""
        reduced = [factor.reduced(directions_K) for factor in factors]
        found: list[Tensor | None] = [None] * len(factors)
        for number, members in enumerate(_alike([directions for _, directions in reduced])):
            kept = self._known.setdefault(name, {}).setdefault(number, _Kept(self._fixed_rank))
            inner = [reduced[i][0] for i in members]
            values = self._contract_alike(kept, inner, reduced[members[0]][1])
            kept.weigh(values)
            for i, value in zip(members, values, strict=True):
                found[i] = value
        return [value for value in found if value is not None]

    def _contract_alike(
        self, kept: _Kept, factors: Sequence[Factor], directions_K: Tensor
    ) -> list[Tensor]:
        """Factors that meet the same directions, which are factorized once."""
        if not self._pays(kept.rank, factors, directions_K):
            kept.give_up()
        if kept.waits:
            return [factor.contract(directions_K) for factor in factors]
        low = factorize(_as_matrices(directions_K), kept.start(directions_K), kept.rank)
        kept.right_KNr = low.right
        found = [factor.contract_low_rank(low, directions_K) for factor in factors]
        if not kept.admitted:
            dense = [factor.contract(directions_K) for factor in factors]
            kept.compare(found, dense)
            return dense
        if self._steps % CHECK_EVERY == CHECK_EVERY - 1:
            sample = self._steps // CHECK_EVERY
            one = [
                values[sample % len(values) :][:1] if len(values) else values for values in found
            ]
            kept.compare(one, [_one(f, sample, directions_K) for f in factors])
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Contraction.state`."""
        kept = {f"{n}/{name}": k for name, maps in self._known.items() for n, k in maps.items()}
        bases = {key: k.right_KNr for key, k in kept.items() if k.right_KNr is not None}
        maps = {key: k.numbers() for key, k in kept.items()}
        return {"steps": self._steps, "maps": maps}, bases

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See `Contraction.restore`."""
        self._known, self._steps = {}, header["steps"]
        for key, numbers in header["maps"].items():
            number, name = key.split("/", 1)
            kept = _Kept(self._fixed_rank)
            kept.take(numbers, tensors.get(key))
            self._known.setdefault(name, {})[int(number)] = kept

    def end_step(self) -> None:
        """See `Contraction.end_step`: ranks that were compared in this step are judged."""
        self._steps += 1
        kept = [k for maps in self._known.values() for k in maps.values()]
        compared = [k for k in kept if k.difference is not None]
        if compared:
            sizes = _numbers([k.size for k in kept if k.size is not None])
            whole, wrong = sum(sizes), _numbers([k.difference for k in compared])
            for k, difference in zip(compared, wrong, strict=True):
                k.learn(difference / whole if whole else 0.0)
            if self._fixed_rank is None:
                self._adapt(compared, [k for k in kept if k.used])
        for k in kept:
            k.end_step()

    def _adapt(self, compared: Sequence[_Kept], used: Sequence[_Kept]) -> None:
        """Doubles the ranks that the tolerance is exceeded by; halves what is needlessly exact."""
        excess = sum(k.error for k in used) - self._tolerance**2
        for k in sorted(compared, key=lambda k: k.error, reverse=True):
            if excess > 0:
                excess -= k.error
                k.double()
            elif k.error < self._tolerance**2 / (16 * len(used)):
                k.halve()

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
        error = sum(kept.error for kept in used) ** 0.5
        return f"rank {max(kept.rank for kept in used)}, error {error:.2%}"


class _Kept:
    """What is remembered of one parameter, or of one map of it.

    `error`: mean square of what the low rank got wrong, in units of all contributions. `size` and
    `difference`: mean squares of this step's contributions, and of what was wrong in them where
    that was looked at. `waits`: how many more steps are dense without a trial.
    """

    def __init__(self, fixed_rank: int | None):
        self._first, self._trusted = fixed_rank or LOWEST_RANK, fixed_rank is not None
        self.rank, self.admitted = self._first, self._trusted
        self.waits = 0 if self._trusted else WARM_UP
        self.right_KNr: Tensor | None = None
        self.error = 0.0
        self.size: Tensor | None = None
        self.difference: Tensor | None = None
        self._patience = 0

    def numbers(self) -> dict[str, Any]:
        """Everything but the tensors; between two steps there is only one."""
        return {n: v for n, v in vars(self).items() if not isinstance(v, Tensor)}

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
        self.rank, self.admitted = self._first, self._trusted
        self.waits = self.waits or CHECK_EVERY

    def weigh(self, values: Sequence[Tensor]) -> None:
        """Adds contributions to this step's size."""
        self.size = _plus(self.size, values)

    def compare(self, found: Sequence[Tensor], dense: Sequence[Tensor]) -> None:
        """Adds differences to this step's."""
        wrong = [a - b for a, b in zip(found, dense, strict=True)]
        self.difference = _plus(self.difference, wrong)

    def learn(self, error: float) -> None:
        """Takes note of a comparison; a rank on trial is admitted."""
        self.error = MEMORY * self.error + (1 - MEMORY) * error if self.admitted else error
        self._patience -= 1
        self.admitted = True

    def double(self) -> None:
        """Puts twice the rank on trial."""
        self._patience = PATIENCE
        self._renew(2 * self.rank)

    def halve(self) -> None:
        """Puts half the rank on trial, unless it was not enough a short while ago."""
        if self._patience <= 0 and self.rank > LOWEST_RANK:
            self._renew(self.rank // 2)

    def end_step(self) -> None:
        """Forgets this step's sizes."""
        self.size = self.difference = None
        self.waits = max(0, self.waits - 1)

    def _renew(self, rank: int) -> None:
        self.rank, self.right_KNr, self.admitted = rank, None, False


def _plus(before: Tensor | None, values: Sequence[Tensor]) -> Tensor | None:
    """Adds the mean square over samples and targets; of none, nothing."""
    flat = torch.cat([v.reshape(-1) for v in values]) if values else torch.zeros(0)
    if not flat.numel():
        return before
    now = flat.square().mean()
    return now if before is None else before + now


def _numbers(scalars: Sequence[Tensor | None]) -> list[float]:
    """On the host, with one transfer from the device."""
    there = [t.double() for t in scalars if t is not None]
    found: list[float] = torch.stack([t.to(there[0].device) for t in there]).tolist()
    return found


def _one(factor: Factor, number: int, directions_K: Tensor) -> Tensor:
    """The dense contributions of one sample, (1, K); of none where there are none."""
    count = factor.samples
    sample = torch.arange(count)[number % count : number % count + 1] if count else torch.arange(0)
    return factor.select(sample.to(directions_K.device)).contract(directions_K)


def _alike(directions: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of factors, together where they meet the very same directions."""
    found: dict[int, list[int]] = {}
    for number, tensor in enumerate(directions):
        found.setdefault(id(tensor), []).append(number)
    return list(found.values())


def _as_matrices(directions_K: Tensor) -> Tensor:
    return directions_K.reshape(*directions_K.shape[:2], -1)
