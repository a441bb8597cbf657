"""A step's sums: what each parameter adds to the samples' values and to the books; what came of it.

Sums stay on the parameters' device until the step is over, so that a GPU is waited for once.
Letters: B samples of a block, K targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Reading
from inrun.directions import Gradients
from inrun.distributed import Processes, is_sharded, part_of, parts, whole
from inrun.errors import MisuseError
from inrun.factors import Contraction, Factor, compute_dtype
from inrun.ledger import NO_PASS, OTHER_ROWS, Entries
from inrun.optim import Move
from inrun.scoring._grouped import Member, directions_of, met_together, pulled_together
from inrun.scoring._plan import ParameterPlan
from inrun.utility import Evaluation, finite_sums, require_finite, require_finite_gradients


class DirectionWatcher(Protocol):
    """Sees what a step's shares are contracted with, and the values that came of it."""

    def direction(self, name: str, directions_K: Tensor) -> None:
        """The directions (K, *shape) of one parameter, before the step's values are known."""

    def scored(self, step: int, weight: float, values_NK: np.ndarray) -> None:
        """The values of all samples of the step, which stands for `weight` steps, once it is over.

        The model's weights are those after the step.
        """


class BlockValues:
    """Values (N, K) of several blocks, added up on the devices where they are computed."""

    def __init__(self, samples: Sequence[int], targets: int):
        self._samples, self._K = list(samples), targets
        self._by_device: dict[torch.device, list[Tensor]] = {}

    def add(self, block: int, values_BK: Tensor, scale: float = 1.0) -> None:
        """Adds to one block's, times a scale."""
        device = values_BK.device
        if device not in self._by_device:
            wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no doubles
            self._by_device[device] = [
                torch.zeros(n, self._K, dtype=wide, device=device) for n in self._samples
            ]
        self._by_device[device][block].add_(values_BK, alpha=scale)

    def fetch(self) -> np.ndarray:
        """(N, K) float64, in one transfer per device."""
        total = np.zeros((sum(self._samples), self._K))
        for rows in Reading(*map(torch.cat, self._by_device.values())).wait():
            total += rows.double().numpy()
        return total


def contracted(
    contraction: Contraction,
    name: str,
    factors: Sequence[Sequence[Factor]],
    directions_K: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """A block's number and values (B, K), for each of the blocks' factors of a parameter."""
    joined = [f.on(directions_K.device) for part in factors for f in part]
    found = iter(contraction.contract(name, joined, directions_K))
    for number, part in enumerate(factors):
        for _ in part:
            yield number, next(found)


class Sums:
    """Values (B, K) of each block, and the history's entries (K,)."""

    def __init__(
        self,
        samples: Sequence[int],
        targets: int,
        processes: Processes,
        watcher: DirectionWatcher | None = None,
    ):
        self._samples, self._K, self._processes = list(samples), targets, processes
        self._watcher = watcher
        self.sharded = False
        self._values = BlockValues([2, *samples], targets)  # momentum and decay, then the samples

    def add(
        self,
        name: str,
        plan: ParameterPlan,
        at: Gradients,
        after: Move[Any, Any] | None,
        blocks: Sequence[Block],
        contraction: Contraction,
    ) -> None:
        """What one parameter's samples, momentum and decay did."""
        pulled, p = plan.pull(at, after), plan.parameter
        self.sharded |= is_sharded(p)
        self._values.add(0, torch.stack([pulled.momentum, pulled.decay]), parts(p))
        factors = [block.factors.get(name, []) for block in blocks]
        if plan.by_sample and (plan.held or self._processes.size > 1):
            owned = [block.owned for block in blocks]
            found = self._sample_by_sample(plan, at, self._shares(plan, factors), owned)
            for number, values_BK in enumerate(torch.split(found, self._samples)):
                self._add(number, values_BK)
        if pulled.direction is not None:
            directions_K = whole(pulled.direction, p)
            if self._watcher is not None:
                self._watcher.direction(name, directions_K)
            for number, values_BK in contracted(contraction, name, factors, directions_K):
                self._add(number, values_BK)

    def _sample_by_sample(
        self, plan: ParameterPlan, at: Gradients, shares_B: Tensor, owned: Sequence[bool]
    ) -> Tensor:
        """Values (B, K) among everyone's samples of the step.

        What is no sample's is the same in every process, and one player for all of them together:
        each process has its part of what that did.
        """
        p, size = plan.parameter, self._processes.size
        samples = torch.tensor(self._samples)
        ours = torch.tensor(owned).repeat_interleave(samples).to(shares_B.device)
        everyones, begin = self._processes.rows(shares_B[ours])
        players = everyones
        if not all(owned):
            players = torch.cat([everyones, self._processes.mean(shares_B[~ours]) * size])
        values_NK = plan.values(at, part_of(players, p, leading=1))
        if is_sharded(p):
            values_NK = self._processes.mean(values_NK) * parts(p)
        values_BK = values_NK.new_zeros(len(shares_B), self._K)
        values_BK[ours] = values_NK[begin : begin + int(ours.sum())]
        values_BK[~ours] = values_NK[len(everyones) :] / size
        return values_BK

    def add_group(
        self, group: Sequence[Member], blocks: Sequence[Block], contraction: Contraction
    ) -> None:
        """What small parameters' samples, momentum and decay did; see `groups_of`."""
        pulled = pulled_together(group)
        self._values.add(0, torch.stack([pulled.momentum, pulled.decay]))
        if pulled.direction is None:
            return
        if self._watcher is not None:
            for name, directions_K in directions_of(group, pulled.direction).items():
                self._watcher.direction(name, directions_K)
        for number, block in enumerate(blocks):
            together, rest = met_together(group, pulled.direction, block)
            for values_BK in together:
                contraction.note([values_BK])
                self._add(number, values_BK)
            for name, directions_K in rest.items():
                found = [f.on(directions_K.device) for f in block.factors.get(name, [])]
                for values_BK in contraction.contract(name, found, directions_K):
                    self._add(number, values_BK)

    def _shares(self, plan: ParameterPlan, factors: Sequence[Sequence[Factor]]) -> Tensor:
        """Materialized, of all blocks' samples."""
        p, dtype = plan.parameter, compute_dtype(plan.parameter)
        return torch.cat([
            sum(
                (factor.on(p.device).materialize(dtype) for factor in part),
                start=torch.zeros(samples, *p.shape, dtype=dtype, device=p.device),
            )
            for samples, part in zip(self._samples, factors, strict=True)
        ])  # fmt: skip

    def add_streamed(self, blocks: Sequence[Block], scale: float) -> None:
        """What was contracted inside the backward pass."""
        for number, block in enumerate(blocks):
            if block.values_BK is not None:
                self._add(number, block.values_BK * (scale / self._processes.size))

    def told(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values of all blocks' samples (N, K), momentum (K,) and decay (K,), float64."""
        total = self._values.fetch()
        history = total[:2]
        if self.sharded:  # each process has summed over its own parts
            history = self._processes.mean(torch.from_numpy(history)).numpy()
        return total[2:], history[0], history[1]

    def _add(self, block: int, values_BK: Tensor) -> None:
        self._values.add(1 + block, values_BK)


class Scored(NamedTuple):
    """A step's result: values (N, K) in the blocks' order, its books, the method really used.

    `sizes` (N,) are those of the samples' own gradients, where they were asked for.
    """

    values: np.ndarray
    entries: Entries
    estimator: str
    sizes: np.ndarray | None = None


def read(
    sums: Sums,
    passes: tuple[Evaluation, Evaluation],
    targets: Sequence[str],
    estimator: str,
    unowned: Sequence[bool],
    other: Tensor | None,
    sizes: Tensor | None = None,
) -> Scored:
    """A step's result: its numbers, in one transfer from the device.

    `unowned` says of each share of the step whether it is no sample's, `other` is what changed the
    loss before the opening pass, (K,), `sizes` are every share's, where they were asked for.
    """
    none = torch.zeros(len(targets), dtype=torch.float64)
    losses = Reading(*(found.losses for found in passes), none if other is None else other)
    looks = not (passes[1].checked or sums.sharded)  # where each process has its own parts
    finite = Reading(finite_sums(passes[1])) if looks else None
    asked = None if sizes is None else Reading(sizes)
    values, momentum, decay = sums.told()
    opening, closing, moved = (t.double().numpy() for t in losses.wait())
    for found, each in zip(passes, (opening, closing), strict=True):
        if not found.checked:
            require_finite(targets, torch.from_numpy(each))
    if finite is not None and not finite.wait()[0].numpy().all():
        require_finite_gradients(passes[1], targets)
    _require_values(passes, values, momentum, decay)
    opening, note = opening + moved, ""  # the last step's closing loss
    if np.isnan(closing).any() or np.isnan(opening).any():
        note = NO_PASS
    elif passes[0].rows != passes[1].rows:
        opening, note = np.full_like(opening, np.nan), OTHER_ROWS
    no_ones = np.array(unowned, dtype=bool)
    owned, rest = values[~no_ones], values[no_ones]
    entries = Entries(opening, closing, owned.sum(0), momentum, decay, rest.sum(0), moved, note)
    own_sizes = None if asked is None else asked.wait()[0].double().numpy()[~no_ones]
    return Scored(owned, entries, estimator, own_sizes)


def _require_values(passes: Sequence[Evaluation], *found: np.ndarray) -> None:
    """Refuses numbers that would stay in totals for good."""
    if all(np.isfinite(numbers).all() for numbers in found):
        return
    for evaluation in passes:
        require_finite_gradients(evaluation)
    raise MisuseError(
        "The values of this step are not finite, though the validation loss and its gradient are: "
        "the optimizer's update has no slope where it was taken (eps=0, moments that underflowed, "
        "weights that overflowed). The step is not booked. Use eps=1e-8, or a wider dtype."
    )
