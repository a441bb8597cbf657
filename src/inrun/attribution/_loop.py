"""From blocks to booked steps: what the loop's blocks and the optimizers' hooks set off, in order.

A step begins with its first block of samples and is over when every attached optimizer has stepped,
or when the loop goes on without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from inrun.attribution._advice import Advice
from inrun.attribution._booking import Booking
from inrun.attribution._captures import Before, Captures
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._record import Record
from inrun.attribution._scoring import Frequency
from inrun.capture import Block, Capture, Contract, Watch, are_here
from inrun.errors import NotSupportedError
from inrun.ledger import Ids
from inrun.momentum import Payouts
from inrun.optim import Together, skipped, trained_parameters
from inrun.owners import Ownership
from inrun.scoring import Scored, Scorer, Stage, Step, Tokens
from inrun.truth import Auditing
from inrun.utility import Utility


class Loop:
    """The step that is under way, and how many there were.

    Args:
        model: that is trained.
        optimizers: that train it.
        utility: that judges.
        scorer: that outlives steps.
        window: of momentum, if there is one.
        capture: in which way factors are kept.
        record: of what was scored.
        line: that shows the last step.
        frequency: which steps are scored.
        check: whether the self-test compares sums.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        scorer: Scorer,
        window: Payouts | None,
        capture: type[Capture],
        record: Record,
        line: LiveLine,
        frequency: Frequency,
        check: bool,
    ):
        self._optimizers, self._scorer, self._window = optimizers, scorer, window
        self._record, self.frequency = record, frequency
        self._advice, self.watch = Advice(), Stopwatch()
        self.auditing = Auditing(self.watch.stopped, self._advice.once)
        self.booking = Booking(record, line, self.watch, self._advice, scorer.processes, window)
        self.taken = 0
        self.paused = False
        self._step: Step | None = None
        self._block: Block | None = None  # that is open
        self._inside = False  # a block, or a pass of no sample
        self._tokens: Tokens | None = None
        self._captures = Captures(
            capture, model, optimizers, utility, scorer.processes, self._advice, sums=check
        )
        self._advice.of_stale(utility.refresh)

    @property
    def capture(self) -> Capture:
        """What sees blocks now."""
        return self._captures.now

    @property
    def inside(self) -> bool:
        """Whether a block is open."""
        return self._inside

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

    def listen(self, tokens: Tokens) -> None:
        """Values are split among tokens from now on."""
        self._tokens = tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Steps inside are not scored."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def go_on(self, taken: int) -> None:
        """So many steps were taken before, in a run that goes on; nothing is under way."""
        self.taken = taken
        self.forget(moved=True)

    # ---- open

    @contextmanager
    def block(self, names: Ids, owned: Ownership, *, at_backward: bool = False) -> Iterator[None]:
        """One forward and backward pass of these samples; see `Attribution.batch`."""
        step = self._opened()
        if not step.weight:
            yield
            return
        self._scorer.processes.demand_together()
        with self.watch:
            self._begin_pass(step)
            sees = self.auditing.block_begins(
                self.capture, step.number, len(names), first=not step.owned
            )
        watch = Watch(self._contract(step), sees, sees is not None, step.number)
        self._inside = True
        try:
            with self.capture.block(owned, watch, at_backward=at_backward) as self._block:
                yield
        finally:
            self._inside = False
            block, self._block = self._block, None
            if block is not None and block.ended:
                with self.watch:
                    self._end_block(step, names, block)

    def _opened(self) -> Step:
        """The step under way; its first pass settles whether it is scored."""
        with self.watch:
            if self._step is None:
                weight = self.frequency.weight(self.taken + 1)
                self._scorer.validation.deal(self.frequency.parts)
                self._step = Step(self._scorer, self.taken + 1, weight, self._window)
        return self._step

    def _begin_pass(self, step: Step) -> None:
        """Before a forward and a backward pass of a scored step."""
        if not step.blocks:
            self._captures.refresh()
        self._advice.of_compiled(self.capture.compiled)
        if self.capture.contracts_early:
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
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
        with self.watch:
            added = before.added()
            self._scorer.processes.demand_alike("the end of a block")
            step.add([], self.capture.unowned(added, Watch(self._contract(step))))
            self.auditing.unattributed(added)
            self._conclude_here(step)

    def _contract(self, step: Step) -> Contract | None:
        """What a capture contracts with that does so within; others need not know the step."""
        return partial(step.contract, self.capture) if self.capture.contracts_early else None

    def _end_block(self, step: Step, names: Ids, block: Block) -> None:
        self.auditing.block_ended(self.capture, block)
        step.add(names, block)
        self._conclude_here(step)

    def _conclude_here(self, step: Step) -> None:
        """Compares at once where no device is waited for; else when the optimizer steps."""
        if self._scorer.processes.size > 1 or are_here(self.capture.trained.values()):
            self._conclude(step)

    def _conclude(self, step: Step) -> None:
        """Compares blocks that ended with the gradients."""
        if step.conclude(self.capture):
            self.auditing.cancel()
        self._advice.of_gaps(self.capture.coverage)
        self._advice.of_samples(self.capture)

    # ---- read

    def before(self, k: int) -> None:
        """Before the k-th optimizer steps: the first of them in a step has all of them read."""
        if self.paused or (self._step is not None and k in self._step.stepped):
            self.finish()
        step = self._step
        if step is not None and step.stage is Stage.TAKEN:
            with self._forgotten_where_it_fails():
                step.demand_unchanged(k)
        elif self.paused:
            self.forget(moved=True, by=k)
        elif step is not None and not step.weight:
            step.pass_by(skips=skipped(self._optimizers.members[k]))
        else:
            self._before_scored(k, step)

    def _before_scored(self, k: int, step: Step | None) -> None:
        """Before a step that is to be scored, if it has samples and is really taken."""
        skips = skipped(self._optimizers.members[k])
        what = "no" if skips else "a scored" if self.blocks else "an unscored"
        with self._forgotten_where_it_fails():
            self._scorer.processes.demand_alike(f"{what} optimizer step")
        moving = trained_parameters(self._optimizers.members[k])
        if not self.pending and not any(p.grad is not None for p in moving):
            return  # a batch was skipped: nothing moves
        if self.blocks and skips:
            self.forget()
            return
        if step is not None and self.blocks:
            self._read(step)
        if not self.blocks:
            self._advice.once(
                "An optimizer step came without an attribution.batch(ids) block before it and was "
                "not scored. Wrap forward and backward in a block, or the step in "
                "attribution.paused()."
            )
            self.forget(moved=True, by=k)

    def _read(self, step: Step) -> None:
        """Reads the step; one of no samples is left as it is."""
        self._advice.of_strangers(self._optimizers, self.capture)
        with self.watch, self._forgotten_where_it_fails():
            step.take_down(self.capture)
            self._conclude(step)
            if not step.owned:  # the loop zeroed what came in of them
                return
            step.plan(self.capture)
        self._advice.of_cancelling(self._scorer.untold)
        if self._scorer.validation.weights_edited:
            self._advice.of_edited_weights()
        self.auditing.before_step(step)

    @contextmanager
    def _forgotten_where_it_fails(self) -> Iterator[None]:
        """An error in it ends the step, which the optimizer may take all the same."""
        try:
            yield
        except Exception:
            self.forget(moved=True, failed=True)
            raise

    # ---- taken, scored

    def after(self, k: int) -> None:
        """After the k-th optimizer stepped: when all of them have, the step is scored."""
        self._optimizers.stepped(k)
        step = self._step
        if step is not None and step.stage in (Stage.READ, Stage.TAKEN):
            step.take(k)
            if len(step.stepped) == len(self._optimizers.members):
                self.finish()

    def stranger_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer that is not attached has stepped."""
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        validation = self._scorer.validation
        if validation.surroundings.holds(moved):
            validation.disturb()
        scored = {id(p) for p in self.capture.trained.values()}
        if any(id(p) in scored for p in moved):
            self._advice.of_another_optimizer(type(optimizer).__name__)

    def finish(self) -> None:
        """Scores what has stepped: when all have, or when the loop goes on without the others."""
        step = self._step
        if step is None or not step.stepped:
            return
        self.taken += 1
        if not step.weight:
            self.forget(moved=True)
            return
        try:
            with self.watch:
                scored = step.score(self.capture, self._tokens)
                if self._tokens is not None:
                    self._tokens.scored(step.number, step.weight, scored.values)
                self.booking.book(step, scored)
            self._check(step, scored)
        except BaseException:
            self._scorer.validation.forget()  # its last pass is that of the weights before the step
            raise
        finally:
            self.forget()

    def _check(self, step: Step, scored: Scored) -> None:
        """The audit's part of a step's end."""
        if not self.auditing.has_played:
            return
        facts = {
            "estimator": scored.estimator,
            "residual": self._record.latest_residual_share,
            "capture": "stream" if self.capture.contracts_early else "hold",
            "covered": self.capture.coverage.share,
            "low_precision": self.capture.low_precision,
            "forecast_error": self._scorer.forecast.error,
        }
        checks = self.auditing.after_step(step.number, scored.values, facts)
        if checks is not None:
            self._record.audited(checks)

    def forget(self, *, moved: bool = False, failed: bool = False, by: int | None = None) -> None:
        """Forgets the step under way, and where weights move unscored what waits for later steps.

        Args:
            moved: weights may have changed without being scored.
            failed: an error is the reason, maybe in this process alone.
            by: the number of the optimizer that alone moves them.
        """
        self._step = None
        self.auditing.cancel()
        self.capture.check.next_step()
        if not moved:
            return
        self._scorer.validation.forget()
        if by is None:
            self.booking.settle(parted=failed)
            return
        held = trained_parameters(self._optimizers.members[by])
        moving = {id(p) for p in held if p.grad is not None}
        self.booking.pause([n for n, p in self.capture.trained.items() if id(p) in moving])
