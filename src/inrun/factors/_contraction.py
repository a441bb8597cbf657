"""How directions meet factors: densely, or through a low rank that is kept honest.

A contraction is asked for each parameter in turn, and told when a step is over. It may remember
something of a parameter from one step to the next, under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.factors import cost
from inrun.factors._factor import Factor
from inrun.factors._trial import (
    CHECK_EVERY,
    LOWEST_RANK,
    Reader,
    Trial,
    Waiting,
    factorize,
    mean_square,
)


class Contraction(ABC):
    """A strategy; one object a run.

    `exact`: whether values are exactly those of the directions.
    """

    exact: ClassVar[bool] = False

    @abstractmethod
    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        """<direction_k, share_b> for each factor of one parameter, each (B, K).

        Args:
            name: of the parameter.
            factors: of one step or a part of it.
            directions_K: (K, *shape).
        """

    def note(self, values: Sequence[Tensor]) -> None:  # noqa: B027 - most have no use for it
        """Takes note of contributions (B, K) to the step that were found elsewhere."""

    def end_step(self, reader: Reader | None = None) -> None:  # noqa: B027 - most have nothing to do
        """All parameters of a step were contracted.

        Args:
            reader: how the step's numbers get to the host; they are looked at when the next step
                is contracted, or when somebody asks.
        """

    def forget_step(self) -> None:  # noqa: B027 - most have nothing to do
        """The step that ended last was not scored: nothing is learned from it."""

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

    exact = True

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        return [factor.contract(directions_K) for factor in factors]

    def describe(self, name: str) -> str:
        return "dense"


class LowRankContraction(Contraction):
    """Through a low rank where that costs less, with its error measured.

    A parameter's error is the root mean square difference of its contributions from the dense ones,
    in units of all parameters' contributions to the same step (the root of the sum of their mean
    squares): what it does to a sample's value. Of several targets it is the worst one's, each in
    its own units. After four dense steps a rank is on trial: values are the dense ones, and it is
    admitted if all errors together stay within the tolerance; or else the largest of them put twice
    the rank on trial. Where all contributions are 0 there is nothing to compare, and the trial goes
    on. Once admitted a rank is checked on one sample every 16 steps, and one that is better by far
    than it needs to be puts half of it on trial. Where the directions' size jumps, or what the rank
    misses of them, it is on trial again in the same step (on an accelerator, whose numbers are read
    later, in the next), and where its part in the values outgrows its error in the next.

    Args:
        tolerance: relative error of values that is accepted, errors of parameters adding up as
            independent ones do.
        rank: a fixed rank instead. The first four steps are dense all the same, the error is
            measured in them and whenever something jumps, and said; nothing comes of it.

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
        self._known: dict[str, dict[int, Trial]] = {}  # by parameter, then by map of it
        self._steps = 0
        self._values: list[list[Tensor]] = []  # of this step's parameters
        # not judged yet: ranks that met something, those that were compared and whether in use
        self._ended: tuple[list[Trial], list[tuple[Trial, bool]], Tensor | Waiting] | None = None

    def contract(self, name: str, factors: Sequence[Factor], directions_K: Tensor) -> list[Tensor]:
        self._judge()
        reduced = [factor.reduced(directions_K) for factor in factors]
        found: list[Tensor | None] = [None] * len(factors)
        for number, members in enumerate(_alike([directions for _, directions in reduced])):
            inner, directions = [reduced[i][0] for i in members], reduced[members[0]][1]
            values = self._contract_alike(name, number, inner, directions)
            self._values.append(values)
            for i, value in zip(members, values, strict=True):
                found[i] = value
        return [value for value in found if value is not None]

    def note(self, values: Sequence[Tensor]) -> None:
        self._values.append(list(values))

    def _contract_alike(
        self, name: str, number: int, factors: Sequence[Factor], directions_K: Tensor
    ) -> list[Tensor]:
        """Factors that meet the same directions, which are factorized once."""
        kept = self._known.get(name, {}).get(number)
        rank = self._fixed_rank or LOWEST_RANK if kept is None else kept.rank
        if not self._pays(rank, factors, directions_K):
            if kept is not None:
                kept.give_up()
            return [factor.contract(directions_K) for factor in factors]
        if kept is None:
            kept = self._known.setdefault(name, {})[number] = Trial(self._fixed_rank)
        if kept.waits:
            return [factor.contract(directions_K) for factor in factors]
        matrices = directions_K.flatten(2)
        low = factorize(matrices, kept.start(directions_K), kept.rank)
        kept.see(matrices, low.right)
        found = [factor.contract_low_rank(low, directions_K) for factor in factors]
        if kept.admitted and self._jumped(kept):
            kept.retry()
        if not kept.admitted:
            dense = [factor.contract(directions_K) for factor in factors]
            kept.compare(found, dense)
            kept.weigh(dense)
            return dense
        if self._steps % CHECK_EVERY == CHECK_EVERY - 1:
            sample = self._steps // CHECK_EVERY
            one = [
                values[sample % len(values) :][:1] if len(values) else values for values in found
            ]
            kept.compare(one, [_one(f, sample, directions_K) for f in factors])
        kept.weigh(found)
        return found

    def _jumped(self, kept: Trial) -> bool:
        """Asked within a step where numbers are on the host anyway."""
        assert kept.seen is not None
        there = kept.seen.device.type == "cpu"
        return there and kept.jumped(self._tolerance, kept.seen.tolist())

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        self._judge()
        kept = {f"{n}/{name}": k for name, maps in self._known.items() for n, k in maps.items()}
        bases = {key: k.right_KNr for key, k in kept.items() if k.right_KNr is not None}
        maps = {key: k.numbers() for key, k in kept.items()}
        return {"steps": self._steps, "maps": maps}, bases

    def restore(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._known, self._steps = {}, header["steps"]
        self._values, self._ended = [], None
        for key, numbers in header["maps"].items():
            number, name = key.split("/", 1)
            kept = Trial(self._fixed_rank)
            kept.take(numbers, tensors.get(key))
            self._known.setdefault(name, {})[int(number)] = kept

    def end_step(self, reader: Reader | None = None) -> None:
        """See `Contraction.end_step`: ranks that were compared in this step are judged later."""
        self._judge()
        self._steps += 1
        values, self._values = self._values, []
        active = [k for k in self._trials if k.size is not None]
        if not active:
            for k in self._trials:
                k.end_step()
            return
        compared = [(k, k.admitted) for k in active if k.difference is not None]
        squares = [t for t in map(mean_square, values) if t is not None]
        whole = torch.stack([t.to(squares[0].device) for t in squares]).sum(0)
        rows = [whole, *(k.size for k in active), *(k.difference for k, _ in compared)]
        rows += [row for k in active if k.seen is not None for row in k.seen]
        sent = torch.stack([t.to(whole) for t in rows if t is not None])
        self._ended = active, compared, sent if reader is None else reader(sent)

    def forget_step(self) -> None:
        """Drops what was compared in a step that is not scored."""
        self._values = []
        if self._ended is not None:
            self._ended = None
            for k in self._trials:
                k.end_step()

    @property
    def _trials(self) -> list[Trial]:
        return [k for maps in self._known.values() for k in maps.values()]

    def _judge(self) -> None:
        """Learns from the comparisons of the step that ended, and says how wrong its values are."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        active, compared, sent = ended
        whole, *rows = (sent if isinstance(sent, Tensor) else sent.wait()[0]).tolist()
        n, m = len(active), len(active) + len(compared)
        sizes, wrong = rows[:n], rows[n:m]
        seen = [list(pair) for pair in zip(rows[m::2], rows[m + 1 :: 2], strict=True)]
        found = dict(zip(map(id, active), zip(sizes, seen, strict=True), strict=True))
        for (k, again), difference in zip(compared, wrong, strict=True):
            k.learn(difference, *found[id(k)], again=again)
        judged = [k for k, _ in compared]
        for k in active:
            size, met = found[id(k)]
            k.share(size, whole)
            if k.admitted and k not in judged and k.jumped(self._tolerance, met):
                k.retry()
        if self._fixed_rank is None:
            self._adapt(active, judged)
        for k in self._trials:
            k.end_step()

    def _adapt(self, active: Sequence[Trial], compared: Sequence[Trial]) -> None:
        """Doubles the ranks that the tolerance is exceeded by; halves what is needlessly exact."""
        used = [k for k in active if k.used]
        if not used:
            return
        totals = [sum(errors) for errors in zip(*(k.error for k in used), strict=True)]
        worst = max(range(len(totals)), key=totals.__getitem__)
        excess = totals[worst] - self._tolerance**2
        for k in sorted(used, key=lambda k: k.error[worst], reverse=True):
            if excess > 0:
                excess -= k.error[worst]
                if k in compared:
                    k.double()
                else:
                    k.retry()
            elif k in compared and max(k.error) < self._tolerance**2 / (16 * len(used)):
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
        self._judge()
        known = [kept for kept in self._known.get(name, {}).values() if kept.measured]
        if not known:
            return "dense"
        found = [kept.told() for kept in known]
        error = max(sum(errors) for errors in zip(*found, strict=True)) ** 0.5
        trial = "" if all(kept.used for kept in known) else " (on trial: values are dense)"
        return f"rank {max(kept.rank for kept in known)}, error {error:.2%}{trial}"


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
