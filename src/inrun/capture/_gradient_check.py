"""Shares sum to the gradient: the invariant, and what became of the gradient before the step.

Sum over samples of <r, share_i> = <r, grad>, for a random r per parameter and step (see `_probe`),
is checked when a batch block ends (of large shares in turn, see `_rota`). Gradient that belongs to
no sample comes as a block of its own and counts on the shares' side. From then to the optimizer's
step the gradient may be scaled (unscaling, clipping by norm, averaging): the factor k is read off
the gradients themselves (see `_common_factor`). Where no one factor explains the change, it was
elementwise (clipping by value), and the raw gradient is needed.

Inside a scoring window gradients are measured as shares are compared, large ones in turn
(`measure_in_turn`); of the others what tells is whether anything was written to them, and then they
were multiplied by the factor that those in turn have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from inrun.capture._common_factor import Change, factors
from inrun.capture._measured import NOTHING, Ended, Found, Measured, Measuring, Rows, Summed
from inrun.capture._probe import (
    SINGLE,
    CheckSchedule,
    Probes,
    eps_of,
    is_single,
    tolerance,
)
from inrun.capture._small import is_small, of_shares
from inrun.distributed import Processes
from inrun.errors import InvariantError, MisuseError
from inrun.factors import Dense, Factor

WAITING = 4_000_000  # numbers of small parameters' shares that wait to be met together

CANCELLED = 1e-4  # of the shares' sizes: where a gradient is what rounding left of their sum


class GradientCheck:
    """The invariant over the blocks of one step."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        seed: int = 0,
        processes: Processes | None = None,
    ):
        self._parameters, self._processes = dict(parameters), processes or Processes()
        self._probes = Probes(self._parameters, seed)
        self._measuring = Measuring(self._parameters, self._probes, self._processes)
        # processes' steps need not be the same, so several of them check in every step
        self._schedule = CheckSchedule(always=self._processes.size > 1)
        self._computed: dict[str, float] = {}  # by parameter, eps of what its shares are made of
        self._present: set[str] = set()  # parameters with shares in the present block
        self._shared: set[str] = set()  # and in any block of the step
        self._block: dict[str, tuple[Tensor, Tensor]] = {}
        self._small: list[tuple[str, Factor]] = []  # shares that are met together
        self._waiting = 0  # numbers in them
        self._small_sums: list[tuple[list[str], Tensor]] = []
        self._ended: list[Ended] = []
        self._consumed: Rows | None = None  # None where nothing became of any of these
        self._consumed_names: list[str] = []
        self.consumed_norm = 0.0  # of all gradients that the step consumes, once `scales` read them
        self._at_mark: Mapping[str, tuple[int, int]] = {}
        self._at_consume: dict[str, tuple[int, int]] = {}
        self._in_turn = False  # whether of large gradients only those are measured whose turn it is
        self._known: dict[str, float] = {}  # norms, as they were last measured
        self._compared = 0  # blocks of the step
        self._met = False  # whether all processes have come to the end of a block of it
        self._before: dict[str, Summed] = {}
        self._marks = Found()
        self._seen: set[str] = set()
        self.excluded: set[str] = set()  # in this step

    def add(self, name: str, factor: Factor, *, early: bool = False) -> None:
        """Adds a factor's shares to the present block's sum.

        Args:
            name: of the parameter.
            factor: of the block's samples.
            early: it was built inside the backward pass, so that its activations are not to wait
                for the block's end.
        """
        self._present.add(name)
        eps, held = 0.0, 0
        for t in factor.held:
            eps, held = max(eps, eps_of(t.dtype)), held + t.numel()
        self._computed[name] = max(self._computed.get(name, 0.0), eps)
        if not self._schedule.asks(name, held):
            return
        early = early and type(factor) is not Dense
        if not early and is_small(self._parameters[name], factor, held):
            self._small.append((name, factor))
            self._waiting += held
            if self._waiting > WAITING:
                self._meet_small()
            return
        products = self._probes[name].of_shares(factor)
        total, size = self._block.get(name, (products.new_zeros(()), products.new_zeros(())))
        self._block[name] = total + products.sum(), size + products.abs().sum()

    def measure_in_turn(self) -> None:
        """Of this step only gradients are measured whose shares are to be compared."""
        self._in_turn = self._schedule.takes_turns

    def _due(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that are to be measured in this step."""
        if not self._in_turn:
            return dict(gradients)
        return {name: g for name, g in gradients.items() if self._schedule.compares(name)}

    def exclude(self, names: Iterable[str]) -> None:
        """These parameters' shares cannot be told in this step: they are gaps as a whole."""
        gone = set(names)
        if not gone:
            return
        self.excluded |= gone
        self._small = [(name, factor) for name, factor in self._small if name not in gone]
        # sums that were made already are left out by `_conclude`
        for name in gone:
            self._block.pop(name, None)
            self._present.discard(name)

    def discard_block(self) -> None:
        """Forgets the present block's sums."""
        self._block, self._present = {}, set()
        self._small, self._small_sums, self._waiting = [], [], 0

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

        Args:
            gradients: by parameter name.
            low_precision: whether half precision took part.
            skipped: uses that have no share for a sample, and why: for the message.
            reduced: whether the backward pass averaged the processes' gradients. If not, nothing is
                asked of the other processes, whose blocks may be others.
            unowned: whether the block's gradient belongs to no sample.
        """
        there = {name: g for name, g in gradients.items() if g is not None}
        for name, g in there.items():
            if self._computed.get(name, 1.0) < SINGLE and is_single(g):
                self._computed[name] = SINGLE
        versions = _versions(there)
        present = set() if unowned else self._present
        measured = self._measuring.measure(self._due(there))
        self._ended.append(
            Ended(
                self._block_sums(), measured, present, low_precision, skipped or {}, reduced,
                versions, unowned,
            )
        )  # fmt: skip
        self._met |= reduced
        self.discard_block()

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
        if not self._marks.finite and found.finite:  # what was not finite is not in there any more
            self._before = dict.fromkeys(self._before, _UNLIKE)
        together = self._with_before(sums)
        several = block.reduced and self._processes.size > 1
        readings = self._readings if several else self._own_readings
        by_itself = sums
        if block.unowned:  # alone there, it would be all that there is
            by_itself = {name: one._replace(owned=1.0) for name, one in sums.items()}
        wrong, alone = readings(together, by_itself, found, block.low_precision)
        if wrong:
            self._raise(wrong, together, found, block.skipped)
        self._before, self._marks = (sums if alone else together), found
        self._known |= {name: measured.norm for name, measured in found.items()}
        self._at_mark = block.versions
        self._shared = block.present if alone else self._shared | block.present
        self._shared -= self.excluded
        self._seen |= self._shared
        return alone

    def end_unreduced_block(self) -> None:
        """Adds the block to the step's sums; its gradient will be seen with a later block's."""
        rows = self._block_sums().read()
        self._before = self._with_before({name: Summed(*row) for name, row in rows.items()})
        self._shared |= self._present
        self.discard_block()

    def _with_before(self, sums: Mapping[str, Summed]) -> dict[str, Summed]:
        """The block's sums and those of the blocks before it."""
        if not self._before:
            return dict(sums)
        return {
            name: sums.get(name, NOTHING) + self._before.get(name, NOTHING)
            for name in {**self._before, **sums}
            if name not in self.excluded
        }

    def _own_readings(
        self,
        together: dict[str, Summed],
        sums: dict[str, Summed],
        found: Found,
        low_precision: bool,
    ) -> tuple[list[str], bool]:
        """As `_readings`, of this process's own gradient."""
        self._seen = _owned(together)
        wrong = self._disagreements(together, found, low_precision)
        alone = bool(wrong) and not self._disagreements(sums, found, low_precision)
        return ([] if alone else wrong), alone

    def _readings(
        self,
        together: dict[str, Summed],
        sums: dict[str, Summed],
        found: Found,
        low_precision: bool,
    ) -> tuple[list[str], bool]:
        """What disagrees however the gradient is read, and whether it holds this block alone.

        Of several processes' gradients it may be the mean already, or still this process's own
        (`no_sync`); all of them must read it in the same way.
        """
        readings = [self._mean(together), self._mean(sums), together, sums]
        wrong = [self._disagreements(reading, found, low_precision) for reading in readings]
        self._seen = _owned(readings[0])
        for number, right in enumerate(self._processes.all([not names for names in wrong])):
            if right:
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

    def consume(self, gradients: Mapping[str, Tensor]) -> None:
        """Records the gradients that the optimizer is about to consume, for `scales`."""
        held = {name: self._parameters[name].grad for name in gradients}  # not what was read of it
        self._at_consume = _versions({name: g for name, g in held.items() if g is not None})
        self._consumed_names = list(gradients)
        rests = self._in_turn and not self._ended
        if self._in_turn:  # a fused step under a gradient scaler reads it unscaled
            for name, g in gradients.items():
                own = held[name]
                if own is None or own.data_ptr() != g.data_ptr():
                    self._at_consume.pop(name, None)
        rests = rests and all(map(self._is_untouched, gradients))
        self._consumed = None if rests else self._measuring.measure(self._due(gradients))

    def computed(self, name: str) -> float:
        """Eps of what a parameter's shares are made of, 0 where there are none."""
        return self._computed.get(name, 0.0)

    @property
    def unread(self) -> int:
        """How many blocks ended that were not compared."""
        return len(self._ended)

    def overflowed(self) -> set[str]:
        """Whose gradients are not finite, of those that `consume` took down."""
        now = {} if self._consumed is None else self._measuring.read(self._consumed)
        return {name for name, measured in now.items() if not measured.is_finite}

    def scales(self, without: Collection[str] = ()) -> dict[str, float | None]:
        """K with gradient = k * (sum of shares) by name, None where no such number exists.

        Args:
            without: names that are left out: nothing moves them in this step.

        Raises:
            MisuseError: gradients were cleared, one is not finite, or one appeared after the last
                block.
        """
        names = [name for name in self._consumed_names if name not in without]
        now = self._marks if self._consumed is None else self._measuring.read(self._consumed)
        if now.keys() != set(names):
            now = Found({name: now[name] for name in names if name in now})
        self._consumed = None
        self.consumed_norm = math.hypot(*(measured.norm for measured in now.values()))
        there_was = any(mark.norm > 0 for mark in self._marks.values())
        if there_was and all(measured.norm == 0 for measured in now.values()):
            raise MisuseError(
                "The gradients were cleared between the attribution.batch(ids) block and "
                "optimizer.step(), so this step learns nothing from its samples. Call zero_grad() "
                "after step(), or before the block."
            )
        if self._unchanged(now) and all(map(self._is_untouched, names)):
            return dict.fromkeys(names, 1.0)
        noise = max(map(self._noise(self._marks), self._parameters), default=0.0)
        found = factors({name: self._change(name, m) for name, m in now.items()}, noise)
        if len(found) < len(names):
            return self._with_unmeasured(names, found)
        if len({k for n, k in found.items() if self._marks[n].norm > 0}) > 1:
            self._schedule.stop_turns()  # who is not measured is not told by the others
        return found

    def _with_unmeasured(
        self, names: list[str], found: Mapping[str, float | None]
    ) -> dict[str, float | None]:
        """What became of gradients that were not measured: what became of all that were.

        Raises:
            MisuseError: these differ, or one appeared after the last block.
        """
        told = {
            k for n, k in found.items() if self._marks[n].norm > 0 and not self._is_untouched(n)
        }
        scales = dict(found)
        for name in names:
            if name in found:
                continue
            if name not in self._at_mark:
                raise _unseen(name)
            if self._is_untouched(name):
                scales[name] = 1.0
            elif len(told) == 1 and None not in told:
                scales[name] = next(iter(told))
            else:
                self._schedule.stop_turns()
                raise MisuseError(
                    f"The gradient of {name} was changed between backward() and step(), and not "
                    "all that were changed were multiplied by one factor, for the first time after "
                    f"{self._schedule.steps} steps. Inside a scoring window large gradients are "
                    "measured in turn, and this one was not: its factor is not known, so the step "
                    "is not scored. From the next on all are measured: go on, or use "
                    "inrun.EveryStep()."
                )
        return scales

    def _unchanged(self, now: Found) -> bool:
        """Whether nothing at all became of the gradients since their blocks, as mostly."""
        return now.finite and all(
            m == self._marks.get(name) and self._is_untouched(name) for name, m in now.items()
        )

    def _change(self, name: str, now: Measured) -> Change:
        mark = self._marks.get(name)
        if mark is None:
            raise _unseen(name)
        if not now.is_finite:
            raise not_finite(name)
        p = self._parameters[name]
        return Change(mark, now, _close(p), self._is_untouched(name), _between_least(p))

    def _is_untouched(self, name: str) -> bool:
        """Whether nothing was written to a gradient between its block and the step."""
        return self._at_mark.get(name) == self._at_consume.get(name)

    def next_step(self) -> None:
        """Starts the sums of a new step."""
        self._before, self._marks, self._ended, self._consumed = {}, Found(), [], None
        self._in_turn, self._at_mark = False, {}
        self._shared, self._seen, self.excluded = set(), set(), set()
        self.discard_block()
        if self._compared:
            self._schedule.next_step(self._compared)
        self._compared = 0
        if self._met:  # all processes have come there, and draw together
            self._probes.draw()
        self._met = False

    @property
    def norms(self) -> dict[str, float]:
        """Each gradient's norm when the last block ended, or as it was last measured."""
        others = {name: self._known[name] for name in self._at_mark if name in self._known}
        return others | {name: mark.norm for name, mark in self._marks.items()}

    @property
    def cancelling(self) -> set[str]:
        """Parameters whose shares cancel to a gradient that is next to nothing beside them."""
        return {
            name for name, mark in self._marks.items()
            if name in self._before and mark.norm < CANCELLED * self._before[name].size
        }  # fmt: skip

    @property
    def gaps(self) -> list[str]:
        """Parameters that have a gradient in this step, and no share of any sample."""
        noise = self._noise(self._marks)
        if not self._seen and not self.excluded:  # no block of samples was compared yet
            return []

        def unexplained(name: str, mark: Measured) -> bool:
            if name not in self._before:
                return mark.norm > noise(name)
            total, size, _ = self._before[name]
            allowed = tolerance(self._parameters[name], True) * (mark.norm + size) + noise(name)
            return abs(mark.probe - total) > allowed

        return [
            name for name, mark in self._marks.items()
            if name not in self._seen and unexplained(name, mark)
        ]  # fmt: skip

    def _noise(self, found: Found) -> Callable[[str], float]:
        """What counts as zero for a parameter's gradient.

        A gradient that is zero but for rounding (attention's key bias) is compared with the
        largest one: its shares are rounding too.
        """
        whole = found.largest

        def noise(name: str) -> float:
            eps = eps_of(self._parameters[name].dtype)
            return 100 * max(eps, self._computed.get(name, 0.0)) * whole

        return noise

    def _meet_small(self) -> None:
        self._small_sums += of_shares(self._probes, self._small)
        self._small, self._waiting = [], 0

    def _block_sums(self) -> Rows:
        self._meet_small()
        groups = list(self._small_sums)
        if self._block:
            rows = torch.stack([torch.stack(pair).double() for pair in self._block.values()])
            groups.append((list(self._block), rows))
        return Rows.of(groups)

    def _disagreements(
        self,
        sums: Mapping[str, Summed],
        found: Found,
        low_precision: bool,
    ) -> list[str]:
        wrong, noise = [], self._noise(found)
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


def _unseen(name: str) -> MisuseError:
    return MisuseError(
        f"{name} got a gradient outside every attribution.batch(ids) block, so no sample accounts "
        "for it. Run every backward() of a scored step inside a block, a penalty on parameters "
        "inside attribution.unattributed(), or the whole step inside attribution.paused()."
    )


def not_finite(name: str) -> MisuseError:
    """What is said of a gradient that an optimizer is about to consume."""
    return MisuseError(
        f"The gradient of {name} is not finite in this step: no contribution can be computed, and "
        "none is booked. Skip such steps, or lower the learning rate."
    )


def _versions(gradients: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """What tells whether something wrote to a gradient, or put another in its place."""
    return {name: (id(g), g._version) for name, g in gradients.items()}


def _owned(sums: Mapping[str, Summed]) -> set[str]:
    """Parameters with shares of samples in their sums."""
    return {name for name, found in sums.items() if found.owned}


_UNLIKE = Summed(math.inf, math.inf)  # what no finite gradient holds


def _close(p: Tensor) -> float:
    """How far a gradient's numbers may be from k times those before, for its precision."""
    exact = {torch.float64: 1e-9, torch.float32: 1e-4}
    return exact.get(p.dtype) or 4 * torch.finfo(p.dtype).eps


def _between_least(p: Tensor) -> float:
    """What rounding to the smallest numbers of a gradient's precision may add to its norm.

    In float16 they lie 6e-8 apart, and a clipped gradient's elements may be as small. Elements'
    errors are independent: 1.5 times is five times the standard deviation along a direction.
    """
    finfo = torch.finfo(p.dtype)
    return float(1.5 * finfo.smallest_normal * finfo.eps * p.numel() ** 0.5)
