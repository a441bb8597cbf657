"""Shares sum to the gradient: the invariant, and what became of the gradient before the step.

Sum over samples of <r, share_i> = <r, grad>, for a random r per parameter and step (see `_probe`),
is checked when a batch block ends (of large shares in turn, see `_block_sums`). Gradient that
belongs to no sample comes as a block of its own and counts on the shares' side. From then to the
optimizer's step the gradient may be scaled (unscaling, clipping by norm, averaging): see
`_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from inrun.capture._block_sums import BlockSums, CheckSchedule
from inrun.capture._measured import NOTHING, Ended, Found, Measured, Measuring, Summed, versions_of
from inrun.capture._probe import SINGLE, Probes, is_single, tolerance
from inrun.capture._scaling import Scaling
from inrun.distributed import Processes
from inrun.errors import InvariantError

CANCELLED = 1e-4  # of the shares' sizes: where a gradient is what rounding left of their sum
_UNLIKE = Summed(math.inf, math.inf)  # what no finite gradient holds


class GradientCheck:
    """The invariant over the blocks of one step."""

    def __init__(self, parameters: Mapping[str, Tensor], processes: Processes | None = None):
        self._parameters, self._processes = dict(parameters), processes or Processes()
        self._probes = Probes(self._parameters, seed=0)
        self._measuring = Measuring(self._parameters, self._probes, self._processes)
        # processes' steps need not be the same, so several of them check in every step
        self._schedule = CheckSchedule(always=self._processes.size > 1)
        self._computed: dict[str, float] = {}  # by parameter, eps of what its shares are made of
        known = self._schedule, self._computed
        self.sums = BlockSums(self._parameters, self._probes, *known)  # of the present block
        self.scaling = Scaling(self._parameters, self._measuring, *known)
        self._shared: set[str] = set()  # parameters with shares in any block of the step
        self._ended: list[Ended] = []
        self._compared = 0  # blocks of the step
        self._met = False  # whether all processes have come to the end of a block of it
        self._before: dict[str, Summed] = {}
        self._seen: set[str] = set()
        self.excluded: set[str] = set()  # in this step

    def exclude(self, names: Iterable[str]) -> None:
        """These parameters' shares cannot be told in this step: they are gaps as a whole."""
        gone = set(names)
        if gone:
            self.excluded |= gone
            self.sums.leave_out(gone)

    def end_block(
        self,
        gradients: Mapping[str, Tensor | None],
        low_precision: bool,
        skipped: Mapping[str, str] | None = None,
        *,
        reduced: bool = True,
        unowned: bool = False,
    ) -> None:
        """Records sums and gradients as they are now, for `finish` to compare.

        `skipped` says why uses have no share, for the message. Where gradients were not
        `reduced` over processes nothing is asked of the others, whose blocks may be other ones. An
        `unowned` gradient belongs to no sample.
        """
        there = {name: g for name, g in gradients.items() if g is not None}
        for name, g in there.items():
            if self._computed.get(name, 1.0) < SINGLE and is_single(g):
                self._computed[name] = SINGLE
        present = set() if unowned else self.sums.present
        measured = self._measuring.measure(self.scaling.due(there))
        self._ended.append(
            Ended(
                self.sums.rows(), measured, present, low_precision, skipped or {}, reduced,
                versions_of(there), unowned,
            )
        )  # fmt: skip
        self._met |= reduced
        self.sums.discard()

    def finish(self) -> list[bool]:
        """Compares what blocks left: for each, whether only its own samples are in the gradients.

        Gradients may have been zeroed since the block before: then earlier blocks of the step
        do not count any more.

        Raises:
            InvariantError: the shares do not sum to the gradient, by whichever reading.
        """
        ended, self._ended = self._ended, []
        self._compared += len(ended)
        return [self._conclude(block) for block in ended]

    def _conclude(self, block: Ended) -> bool:
        found = self._measuring.read(block.gradients)
        sums = {n: s for n, s in block.summed().items() if n not in self.excluded}
        if not self.scaling.marks.finite and found.finite:  # what was not finite is gone from there
            self._before = dict.fromkeys(self._before, _UNLIKE)
        together, by_itself = self._with_before(sums), sums
        if block.unowned:  # alone there, it would be all that there is
            by_itself = {name: one._replace(owned=1.0) for name, one in sums.items()}
        wrong, alone = self._readings(together, by_itself, found, block)
        if wrong:
            self._raise(wrong, together, found, block.skipped)
        self._before = sums if alone else together
        self.scaling.mark(found, block)
        self._shared = block.present if alone else self._shared | block.present
        self._shared -= self.excluded
        self._seen |= self._shared
        return alone

    def end_unreduced_block(self) -> None:
        """Adds the block to the step's sums; its gradient will be seen with a later block's."""
        rows = self.sums.rows().read()
        self._before = self._with_before({name: Summed(*row) for name, row in rows.items()})
        self._shared |= self.sums.present
        self.sums.discard()

    def _with_before(self, sums: Mapping[str, Summed]) -> dict[str, Summed]:
        """The block's sums and those of the blocks before it."""
        if not self._before:
            return dict(sums)
        return {
            name: sums.get(name, NOTHING) + self._before.get(name, NOTHING)
            for name in {**self._before, **sums}
            if name not in self.excluded
        }

    def _readings(
        self, together: dict[str, Summed], sums: dict[str, Summed], found: Found, block: Ended
    ) -> tuple[list[str], bool]:
        """What disagrees however the gradient is read, and whether it holds this block alone.

        Of several processes' gradients it may be the mean already, or still this process's own
        (`no_sync`); all of them must read it in the same way.
        """
        several = block.reduced and self._processes.size > 1
        readings = [together, sums]
        if several:
            readings = [self._mean(together), self._mean(sums), *readings]
        self._seen = {name for name, one in readings[0].items() if one.owned}
        wrong = [self._disagreements(readings[0], found, block.low_precision)]
        if not several and not wrong[0]:
            return [], False
        wrong += [self._disagreements(one, found, block.low_precision) for one in readings[1:]]
        right = [not names for names in wrong]
        for number, agreed in enumerate(self._processes.all(right) if several else right):
            if agreed:
                return [], number % 2 == 1
        return wrong[0] or ["of another process"], False

    def _mean(self, sums: Mapping[str, Summed]) -> dict[str, Summed]:
        """Sums over all processes' samples, as a mean over processes."""
        rows = [(*sums.get(n, NOTHING), float(n in sums)) for n in self._parameters]
        mean = self._processes.mean(torch.tensor(rows, dtype=torch.float64)).tolist()
        return {
            name: Summed(total, size, owned)
            for name, (total, size, owned, seen) in zip(self._parameters, mean, strict=True)
            if seen
        }

    def computed(self, name: str) -> float:
        """Eps of what a parameter's shares are made of, 0 where there are none."""
        return self._computed.get(name, 0.0)

    @property
    def unread(self) -> int:
        """How many blocks ended that were not compared."""
        return len(self._ended)

    def next_step(self) -> None:
        self._before, self._ended = {}, []
        self._shared, self._seen, self.excluded = set(), set(), set()
        self.scaling.next_step()
        self.sums.discard()
        if self._compared:
            self._schedule.next_step(self._compared)
        self._compared = 0
        if self._met:  # all processes have come there, and draw together
            self._probes.draw()
        self._met = False

    @property
    def cancelling(self) -> set[str]:
        """Parameters whose shares cancel to a gradient that is next to nothing beside them."""
        return {
            name for name, mark in self.scaling.marks.items()
            if name in self._before and mark.norm < CANCELLED * self._before[name].size
        }  # fmt: skip

    @property
    def gaps(self) -> list[str]:
        """Parameters that have a gradient in this step, and no share of any sample."""
        noise = self.scaling.noise(self.scaling.marks)
        if not self._seen and not self.excluded:  # no block of samples was compared yet
            return []

        def unexplained(name: str, mark: Measured) -> bool:
            if name not in self._before:
                return mark.norm > noise(name)
            total, size, _ = self._before[name]
            allowed = tolerance(self._parameters[name], True) * (mark.norm + size) + noise(name)
            return abs(mark.probe - total) > allowed

        return [
            name for name, mark in self.scaling.marks.items()
            if name not in self._seen and unexplained(name, mark)
        ]  # fmt: skip

    def _disagreements(
        self,
        sums: Mapping[str, Summed],
        found: Found,
        low_precision: bool,
    ) -> list[str]:
        wrong, noise = [], self.scaling.noise(found)
        nothing = Measured(0.0, 0.0)
        for name, (total, size, owned) in sums.items():
            now = found.get(name, nothing)
            if not now.is_finite or not owned:
                continue  # a step that will be skipped, or else `scales` names the parameter
            p = self._parameters[name]
            near = tolerance(p, low_precision, self._computed.get(name, 0.0))
            allowed = near * (now.norm + size) + noise(name)
            if not math.isfinite(size) or not abs(total - now.probe) <= allowed:
                wrong.append(name)
        return wrong

    def _raise(
        self,
        wrong: list[str],
        sums: Mapping[str, Summed],
        found: Mapping[str, Measured],
        skipped: Mapping[str, str],
    ) -> None:
        name = wrong[0]
        now = found.get(name, Measured(0.0, 0.0))
        total = sums.get(name, NOTHING).total
        reasons = [f"{skipped[n]} ({n})" for n in wrong if n in skipped]
        known = f"What was seen: {reasons[0]}. " if reasons else ""
        raise InvariantError(
            f"The gradient shares of {name} do not sum to its gradient: along a random direction "
            f"the samples' shares give {total:.6g}, the gradient {now.probe:.6g} (norm "
            f"{now.norm:.3g}; {len(wrong)} parameters disagree). {known}Likely reasons: a backward "
            "pass outside attribution.batch(ids) left its gradient there (call zero_grad before "
            "the block); the loss has a term of parameters alone, such as a penalty on their norm: "
            "run its backward pass apart, `with attribution.unattributed(): penalty.backward()` "
            "(or use the optimizer's weight_decay); a hook on the parameter changes its gradient; "
            "a gradient penalty or a checkpoint with use_reentrant=True, whose second pass cannot "
            "be seen; an operation that draws random numbers inside itself."
        )
