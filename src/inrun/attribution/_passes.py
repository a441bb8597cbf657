"""The loop's forward and backward passes: blocks of samples that come into the step under way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from inrun.attribution._advice import Advice
from inrun.attribution._captures import Before, Captures
from inrun.attribution._frequency import Frequency
from inrun.attribution._live import Stopwatch
from inrun.capture import Block, Capture, Contract, Resting, Watch
from inrun.errors import NotSupportedError
from inrun.ledger import Ids
from inrun.momentum import Payouts
from inrun.owners import Ownership
from inrun.scoring import Scorer, Step, Windows
from inrun.truth import Auditor


class Passes(ABC):
    """The step under way while it is open."""

    def __init__(
        self,
        captures: Captures,
        scorer: Scorer,
        window: Payouts | None,
        frequency: Frequency,
        advice: Advice,
        watch: Stopwatch,
        windows: Windows | None = None,
    ):
        self._windows = windows
        self._captures, self._scorer, self._window = captures, scorer, window
        self.frequency, self.advice, self.watch = frequency, advice, watch
        self.taken = 0  # steps
        self._step: Step | None = None
        self._block: Block | None = None  # that is open
        self.inside = False  # a block, or a pass of no sample
        self._auditor: Auditor | None = None

    @property
    def capture(self) -> Capture:
        """What sees blocks now."""
        return self._captures.now

    @property
    def ended(self) -> bool:
        """Whether the backward pass of the block that is open came through."""
        return self._block is None or self._block.ended

    @property
    def pending(self) -> bool:
        """Whether samples wait for their step."""
        return self._step is not None and bool(self._step.blocks)

    @property
    def blocks(self) -> int:
        """How many blocks of samples the step under way has so far."""
        return 0 if self._step is None else len(self._step.owned)

    @contextmanager
    def block(self, names: Ids, owned: Ownership, *, at_backward: bool = False) -> Iterator[None]:
        """One forward and backward pass of these samples; see `Attribution.batch`."""
        step = self._opened()
        if not step.weight:
            yield
            return
        self._scorer.processes.require_together()
        with self.watch:
            self._begin_pass(step)
            sees = None
            if self._auditor is not None:
                sees = self._auditor.block_begins(len(names))
        watch = Watch(
            self._contract(step), sees, sees is not None, step.number, step.sketches, step.audited
        )
        self.inside = True
        with Resting():
            try:
                with self.capture.block(owned, watch, at_backward=at_backward) as self._block:
                    yield
            finally:
                self.inside = False
                block, self._block = self._block, None
                if block is not None and block.ended:
                    with self.watch:
                        self._end_block(step, names, block)

    def _opened(self) -> Step:
        """The step under way; its first pass decides whether it is scored."""
        with self.watch:
            if self._step is None:
                weight = self.frequency.weight(self.taken + 1)
                self._scorer.validation.deal(self.frequency.parts)
                number = self.taken + 1
                if self._windows is not None and self.frequency.windowed:
                    self._step = self._windows.step(number)
                else:
                    self._step = Step(self._scorer, number, weight, self._window)
        return self._step

    def _begin_pass(self, step: Step) -> None:
        """Before a forward and a backward pass of a scored step."""
        if not step.blocks:
            self._captures.refresh()
            known = None if self._windows is None else self._windows.names
            if known is not None and known != list(self.capture.trained):
                self.close_window()  # parameters were added, frozen or thawed
            if self._auditor is not None:
                self._auditor.step_begins(self.capture, step.number)
        self.advice.of_compiled(self.capture.compiled)
        if self.capture.contracts_early:
            # the opening gradient is asked of all processes, and the backward pass is everyone's
            self._scorer.processes.require_alike("the beginning of a block")
            self._conclude(step)  # the forecast counts blocks
        step.begin_pass(self.capture)

    @contextmanager
    def unattributed(self) -> Iterator[None]:
        """A backward pass whose gradient is no sample's; see `Attribution.unattributed`."""
        step = self._opened()
        if not step.weight:
            yield
            return
        if self.capture.sharded:
            raise NotSupportedError(
                "attribution.unattributed() reads whole gradients, and this model's parameters "
                "are sharded (fully_shard). Use the optimizer's weight_decay, or train under "
                "DistributedDataParallel."
            )
        with self.watch:
            self._begin_pass(step)
            before = Before(self.capture.trained)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
        with self.watch:
            added = before.added()
            self._scorer.processes.require_alike("the end of a block")
            watch = Watch(self._contract(step), sketch=step.sketches, factors=step.audited)
            step.add([], self.capture.unowned(added, watch))
            if self._auditor is not None:
                self._auditor.unattributed(added)
            self._conclude_here(step)

    @abstractmethod
    def close_window(self) -> None:
        """Books the steps of the scoring window that is open, as whoever books them can."""

    def _contract(self, step: Step) -> Contract | None:
        """What a capture contracts with that does so within; others need not know the step."""
        return partial(step.contract, self.capture) if self.capture.contracts_early else None

    def _end_block(self, step: Step, names: Ids, block: Block) -> None:
        if self._auditor is not None:
            self._auditor.block_ended(self.capture, block)
        block.forget_calls()
        step.add(names, block)
        self._conclude_here(step)

    def _conclude_here(self, step: Step) -> None:
        """Compares at once where no device is waited for; else when the optimizer steps."""
        if self._scorer.processes.size > 1 or self._captures.here:
            self._conclude(step)

    def _conclude(self, step: Step) -> None:
        """Compares blocks that ended with the gradients."""
        if step.finish(self.capture) and self._auditor is not None:
            self._auditor.cancel()
        self.advice.of_gaps(self.capture.coverage)
        self.advice.of_samples(self.capture)
