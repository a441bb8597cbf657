"""Shares sum to the gradient: the invariant, and what became of the gradient before the step.

Sum over samples of <r, share_i> = <r, grad>, for a random r a parameter (see `_probe`), is checked
when a batch block ends (of large shares in turn, see `_rota`). From then to the optimizer's step
the gradient may be scaled (unscaling, clipping by norm, averaging): the factor k is read off the
gradient itself. Where no one factor explains the change, it was elementwise (clipping by value),
and the raw gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inrun.capture._probe import SINGLE, Probe, coarseness, is_single, tolerance
from inrun.capture._processes import Alone, Processes
from inrun.capture._reading import Reading
from inrun.capture._rota import Rota
from inrun.capture._small import is_small, of_gradients, of_shares
from inrun.capture._taken_down import NOTHING, Ended, Measured, Rows, Summed, summed
from inrun.errors import InvariantError, MisuseError
from inrun.factors import Factor
from inrun.shards import is_sharded, own_part, parts


class GradientCheck:
    """The invariant over the blocks of one step."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        seed: int = 0,
        processes: Processes | None = None,
    ):
        self._parameters, self._processes = dict(parameters), processes or Alone()
        generator = torch.Generator().manual_seed(seed)
        self._probes = {name: Probe(p, generator) for name, p in parameters.items()}
        self._rota = Rota(always=self._processes.size > 1)  # whose steps need not be the same
        self._computed: dict[str, float] = {}  # by parameter, eps of what its shares are made of
        self._present: set[str] = set()  # parameters with shares in the present block
        self._shared: set[str] = set()  # and in any block of the step
        self._block: dict[str, tuple[Tensor, Tensor]] = {}
        self._small: list[tuple[str, Factor]] = []  # shares that are met together
        self._ended: list[Ended] = []
        self._consumed: Rows | None = None
        self._versions: dict[str, int] = {}
        self._compared = 0  # blocks of the step
        self._before: dict[str, Summed] = {}
        self._marks: dict[str, Measured] = {}
        self._seen: set[str] = set()

    def add(self, name: str, factor: Factor) -> None:
        """Adds a factor's shares to the present block's sum."""
        self._present.add(name)
        self._computed[name] = max(self._computed.get(name, 0.0), coarseness(factor))
        if not self._rota.asks(name, factor):
            return
        if is_small(self._parameters[name], factor):
            self._small.append((name, factor))
            return
        products = self._probes[name].of_shares(factor)
        total, size = self._block.get(name, (products.new_zeros(()), products.new_zeros(())))
        self._block[name] = total + products.sum(), size + products.abs().sum()

    def discard_block(self) -> None:
        """Forgets the present block's sums."""
        self._block, self._small, self._present = {}, [], set()

    def end_block(
        self,
        gradients: Mapping[str, Tensor | None],
        low_precision: bool,
        skipped: Mapping[str, str] | None = None,
        *,
        reduced: bool = True,
    ) -> None:
        """Takes sums and gradients down as they are now, for `conclude` to compare.

        Args:
            gradients: by parameter name.
            low_precision: whether half precision took part.
            skipped: uses that have no share for a sample, and why: for the message.
            reduced: whether the backward pass averaged the processes' gradients. If not, nothing is
                asked of the other processes, whose blocks may be others.
        """
        found = self._measure({name: g for name, g in gradients.items() if g is not None})
        for name, g in gradients.items():
            if g is not None and self._computed.get(name, 1.0) < SINGLE and is_single(g):
                self._computed[name] = SINGLE
        self._ended.append(
            Ended(self._block_sums(), found, self._present, low_precision, skipped or {}, reduced)
        )
        self.discard_block()

    def conclude(self) -> list[bool]:
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
        found = self._measured(block.gradients)
        sums = summed(block.sums)
        together = self._with_before(sums)
        readings = self._readings if block.reduced else self._own_readings
        wrong, alone = readings(together, sums, found, block.low_precision)
        if wrong:
            self._raise(wrong, together, found, block.skipped)
        self._before, self._marks = (sums if alone else together), found
        self._shared = block.present if alone else self._shared | block.present
        self._seen |= self._shared
        return alone

    def end_unreduced_block(self) -> None:
        """Adds the block to the step's sums; its gradient will be seen with a later block's."""
        self._before = self._with_before(summed(self._block_sums()))
        self._shared |= self._present
        self.discard_block()

    def _with_before(self, sums: Mapping[str, Summed]) -> dict[str, Summed]:
        """The block's sums and those of the blocks before it."""
        return {
            name: Summed(
                *(x + y for x, y in zip(sums.get(name, NOTHING), self._before.get(name, NOTHING),
                                        strict=True))
            )
            for name in {**self._before, **sums}
        }  # fmt: skip

    def _own_readings(
        self,
        together: dict[str, Summed],
        sums: dict[str, Summed],
        found: Mapping[str, Measured],
        low_precision: bool,
    ) -> tuple[list[str], bool]:
        """As `_readings`, of this process's own gradient."""
        self._seen = set(together)
        wrong = [self._disagreements(s, found, low_precision) for s in (together, sums)]
        alone = bool(wrong[0]) and not wrong[1]
        return ([] if alone else wrong[0]), alone

    def _readings(
        self,
        together: dict[str, Summed],
        sums: dict[str, Summed],
        found: Mapping[str, Measured],
        low_precision: bool,
    ) -> tuple[list[str], bool]:
        """What disagrees however the gradient is read, and whether it holds this block alone.

        Of several processes' gradients it may be the mean already, or still this process's own
        (`no_sync`); all of them must read it in the same way.
        """
        readings = [together, sums]
        if self._processes.size > 1:
            readings = [*(self._mean(reading) for reading in readings), *readings]
        wrong = [self._disagreements(reading, found, low_precision) for reading in readings]
        self._seen = set(readings[0])
        for number, right in enumerate(self._processes.all([not names for names in wrong])):
            if right:
                return [], number % 2 == 1
        return wrong[0] or ["of another process"], False

    def _mean(self, sums: Mapping[str, Summed]) -> dict[str, Summed]:
        """Sums over all processes' samples, as a mean over processes."""
        rows = [(*sums.get(n, NOTHING), float(n in sums)) for n in self._parameters]
        mean = self._processes.mean(torch.tensor(rows, dtype=torch.float64)).tolist()
        return {
            name: Summed(total, size)
            for name, (total, size, seen) in zip(self._parameters, mean, strict=True)
            if seen
        }

    def consume(self, gradients: Mapping[str, Tensor]) -> None:
        """Takes down the gradients that the optimizer is about to consume, for `scales`."""
        self._consumed = self._measure(gradients)
        self._versions = {name: g._version for name, g in gradients.items()}

    def overwritten(self, name: str, gradient: Tensor) -> bool:
        """Whether a gradient was written to since it was taken down for the optimizer."""
        return gradient._version != self._versions[name]

    @property
    def unread(self) -> int:
        """How many blocks ended that were not compared."""
        return len(self._ended)

    def scales(self) -> dict[str, float | None]:
        """K with gradient = k * (sum of shares) by name, None where no such number exists.

        Raises:
            MisuseError: gradients were cleared, one is not finite, or one appeared after the last
                block.
        """
        now = {} if self._consumed is None else self._measured(self._consumed)
        self._consumed = None
        there_was = any(mark.norm > 0 for mark in self._marks.values())
        if there_was and all(measured.norm == 0 for measured in now.values()):
            raise MisuseError(
                "The gradients were cleared between the attribution.batch(ids) block and "
                "optimizer.step(), so this step learns nothing from its samples. Call zero_grad() "
                "after step(), or before the block."
            )
        return {name: self._scale(name, measured) for name, measured in now.items()}

    def _scale(self, name: str, now: Measured) -> float | None:
        mark = self._marks.get(name)
        if mark is None:
            raise MisuseError(
                f"{name} got a gradient outside every attribution.batch(ids) block, so no sample "
                "accounts for it. Run every backward() of a scored step inside a block, or the "
                "whole step inside attribution.paused()."
            )
        if not now.is_finite:
            raise MisuseError(
                f"The gradient of {name} is not finite in this step: no contribution can be "
                "computed, and none is booked. Skip such steps, or lower the learning rate."
            )
        if mark.norm == 0:
            return 1.0 if now.norm == 0 else None
        k = now.norm / mark.norm
        informative = abs(mark.probe) > 1e-2 * mark.norm
        if informative and now.probe * mark.probe < 0:
            k = -k
        if not abs(now.probe - k * mark.probe) <= 1e-3 * (now.norm + abs(now.probe)):
            return None
        return k

    def next_step(self) -> None:
        """Starts the sums of a new step."""
        self._before, self._marks, self._ended, self._consumed = {}, {}, [], None
        self._shared, self._seen = set(), set()
        self.discard_block()
        if self._compared:
            self._rota.next_step(self._compared)
        self._compared = 0

    @property
    def norms(self) -> dict[str, float]:
        """Each gradient's norm when the last block ended."""
        return {name: mark.norm for name, mark in self._marks.items()}

    @property
    def gaps(self) -> list[str]:
        """Parameters that have a gradient in this step, and no share of any sample."""
        noise = self._noise(self._marks)
        return [
            name for name, mark in self._marks.items()
            if name not in self._seen and mark.norm > noise(name)
        ]  # fmt: skip

    def _noise(self, found: Mapping[str, Measured]) -> Callable[[str], float]:
        """What counts as zero for a parameter's gradient.

        A gradient that is zero but for rounding (attention's key bias) is compared with the
        largest one: its shares are rounding too.
        """
        whole = max((m.norm for m in found.values() if m.is_finite), default=0.0)

        def noise(name: str) -> float:
            eps = torch.finfo(self._parameters[name].dtype).eps
            return 100 * max(eps, self._computed.get(name, 0.0)) * whole

        return noise

    def _measure(self, gradients: Mapping[str, Tensor]) -> Rows:
        """Probe and norm of each gradient; of sharded parameters this process's part."""
        own = {name: own_part(g.detach()) for name, g in gradients.items()}
        small = {n: g for n, g in own.items() if is_small(self._parameters[n])}
        rows = of_gradients(self._probes, small)
        pairs = [rows[n] if n in rows else self._probes[n].and_norm(g) for n, g in own.items()]
        return Rows(list(own), Reading(torch.stack(pairs) if pairs else torch.zeros(0, 2)))

    def _measured(self, found: Rows) -> dict[str, Measured]:
        """The same as numbers, of the whole parameters."""
        whole = {name: self._parameters[name] for name in found.names}
        cut = {name: parts(p) for name, p in whole.items() if is_sharded(p)}
        if cut:
            (rows,) = found.reading.wait()
            rows = self._summed(rows, torch.tensor([cut.get(name, 0) for name in found.names]))
            found = Rows(found.names, Reading(rows))
        return {name: Measured(*row) for name, row in found.read().items()}

    def _summed(self, rows: Tensor, cut: Tensor) -> Tensor:
        """Parts' probes and norms as those of the whole, where a parameter is cut at all."""
        squared = torch.stack((rows[:, 0], rows[:, 1].square()), 1)
        whole = self._processes.mean(squared) * cut.unsqueeze(1)
        whole[:, 1] = whole[:, 1].sqrt()
        return torch.where((cut > 0).unsqueeze(1), whole, rows)

    def _block_sums(self) -> Rows:
        for name, found in of_shares(self._probes, self._small).items():
            before = self._block.get(name)
            pair = (found[0] + before[0], found[1] + before[1]) if before else found
            self._block[name] = pair
        self._small = []
        rows = [torch.stack(pair).double() for pair in self._block.values()]
        return Rows(list(self._block), Reading(torch.stack(rows) if rows else torch.zeros(0, 2)))

    def _disagreements(
        self,
        sums: Mapping[str, Summed],
        found: Mapping[str, Measured],
        low_precision: bool,
    ) -> list[str]:
        wrong, noise = [], self._noise(found)
        for name, (total, size) in sums.items():
            now = found.get(name, Measured(0.0, 0.0))
            if not now.is_finite:
                continue  # a step that will be skipped, or else `scales` names the parameter
            p = self._parameters[name]
            near = tolerance(p, low_precision, self._computed.get(name, 0.0))
            allowed = near * (now.norm + size) + noise(name)
            if not abs(total - now.probe) <= allowed:
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
            "the block); the loss has a term of parameters alone, such as a penalty on their norm "
            "(use the optimizer's weight_decay); a hook on the parameter changes its gradient; a "
            "gradient penalty or a checkpoint with use_reentrant=True, whose second pass cannot be "
            "seen; an operation that draws random numbers inside itself."
        )
