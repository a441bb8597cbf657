"""From blocks to scored steps: what the loop's blocks and the optimizers' hooks set off, in order.

A step begins with its first block of samples and is over when every attached optimizer has stepped,
or when the loop goes on without the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from inrun.attribution._advice import Advice
from inrun.attribution._auditing import Auditing
from inrun.attribution._booking import Booking, Step
from inrun.attribution._captures import build_capture
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._paying import Paying
from inrun.attribution._pending import Pending
from inrun.attribution._record import Record
from inrun.attribution._scales import ReadTooLateError
from inrun.attribution._scored import Scored
from inrun.attribution._scorer import Scorer
from inrun.attribution._scoring import Frequency, WithinBudget
from inrun.attribution._unattributed import Before, streamed, unowned_block
from inrun.capture import Block, Capture, Hold, Stream, reads_late, self_test
from inrun.errors import NotSupportedError
from inrun.ledger import Ids
from inrun.optim import Together, skipped, trained_parameters
from inrun.owners import Ownership
from inrun.utility import Utility


class Steps:
    """The step that is under way, and how many there were."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        scorer: Scorer,
        capture: type[Hold] | type[Stream],
        record: Record,
        line: LiveLine,
        frequency: Frequency,
        check: bool,
    ):
        self._model, self._optimizers, self._utility = model, optimizers, utility
        self._scorer, self._capture_kind, self._self_test = scorer, capture, check
        self._record, self.frequency = record, frequency
        self._advice, self.watch = Advice(), Stopwatch()
        self.auditing = Auditing(self.watch, self._advice)
        self.paying = Paying(scorer, record, self.watch, self._advice)
        self.booking = Booking(scorer, record, line, self.watch, self.paying)
        self.taken = 0
        self._weight: float | None = None  # of the step under way; 0 where it is not scored
        self.paused = self._inside = self._stepping = False
        self.ended = True  # whether the last block's backward pass came through
        self._pending = Pending()
        self._late: Step | None = None  # waits for the next step's gradients
        self._at_once = False  # whether it turned out that numbers have to be
        self._stepped: set[int] = set()
        self.capture = self._new_capture()
        self._advice.of_stale(utility.refresh)

    @property
    def inside(self) -> bool:
        """Whether a block is open."""
        return self._inside

    @property
    def pending(self) -> bool:
        """Whether samples wait for their step."""
        return bool(self._pending)

    @property
    def blocks(self) -> int:
        """How many blocks the step under way has so far."""
        return self._pending.samples

    @contextmanager
    def block(self, names: Ids, owned: Ownership, *, at_backward: bool = False) -> Iterator[None]:
        """One forward and backward pass of these samples; see `Attribution.batch`."""
        if not self._is_scored():
            yield
            return

        self.ended = False

        def ended(block: Block) -> None:
            self.ended = True
            with self.watch:
                self._end_block(names, block)

        self._scorer.processes.demand_together()
        with self.watch:
            self._begin_pass()
            self.auditing.block_begins(
                self.capture, self.taken + 1, len(names), first=not self._pending.samples
            )
        self._inside = True
        try:
            with self.capture.block(owned, ended, at_backward=at_backward):
                yield
        finally:
            self._inside = False

    def _is_scored(self) -> bool:
        """Whether the step under way is scored, which its first block settles."""
        with self.watch:
            if self._weight is None:
                self._weight = self.frequency.weight(self.taken + 1)
                self._scorer.validation.deal(self.frequency.parts)
                self._scorer.validation.reads_late = self._reads_late()
        return self._weight != 0

    def _begin_pass(self) -> None:
        """Before a forward and a backward pass of a scored step."""
        self._refresh_capture()
        self._advice.of_compiled(self.capture.compiled)
        self.capture.owner_checks.step = self.taken + 1
        if isinstance(self.capture, Stream):
            self._conclude()  # the forecast counts blocks
            self._scorer.block_begins(self.capture, len(self._pending))

    @contextmanager
    def unattributed(self) -> Iterator[None]:
        """A backward pass whose gradient is no sample's; see `Attribution.unattributed`."""
        if not self._is_scored():
            yield
            return
        if self.capture.sharded:
            raise NotSupportedError(
                "attribution.unattributed() reads whole gradients, and this model's parameters "
                "are sharded (fully_shard). Use the optimizer's weight_decay, or train under "
                "DistributedDataParallel."
            )
        with self.watch:
            self._begin_pass()
            before = Before(self.capture.trained)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
        with self.watch:
            self._end_unattributed(before.added())

    def _end_unattributed(self, added: Mapping[str, Tensor]) -> None:
        late = self._scorer.validation.reads_late
        if late:
            self._conclude()
        self._scorer.processes.demand_alike("the end of a block")
        block = unowned_block(self.capture, added)
        if isinstance(self.capture, Stream):
            streamed(self.capture, block, added)
        if self.auditing.listens:
            block.gradients = dict(added)
        self._pending.add([], block)
        if not late:
            self._conclude()

    def _reads_late(self) -> bool:
        """Whether the host reads this step's numbers after it has queued other work.

        Everything that needs numbers within a step, or times it, has it read them at once.
        """
        alone = self._scorer.processes.size == 1 and len(self._optimizers.members) == 1
        timed = isinstance(self.frequency, WithinBudget) or self.auditing.under_way
        there = reads_late(self.capture.trained.values())
        return there and alone and self._scorer.can_wait and not timed and not self._at_once

    def _end_block(self, names: Ids, block: Block) -> None:
        late = self._scorer.validation.reads_late
        if late:
            self._conclude()  # the block before: the device has long been there
        self.capture.end_block()
        self.auditing.block_ended(self.capture, block)
        self._pending.add(names, block)
        if not late:
            self._conclude()

    def _conclude(self) -> None:
        """Compares blocks that ended with the gradients."""
        if self._pending.conclude(self.capture):
            self.auditing.cancel()
        self._advice.of_gaps(self.capture.coverage)
        self._advice.of_samples(self.capture)

    def before(self, k: int) -> None:
        """Before the k-th optimizer steps: the first of them in a step has all of them read."""
        if self.paused or k in self._stepped:
            self.finish()
        if self._stepped:
            self._before_another(k)
            return
        self._stepping = False
        if self.paused:
            self.drop(moved=True, by=k)
            return
        skips = skipped(self._optimizers.members[k])
        if self._weight != 0:
            what = "no" if skips else "a scored" if self.blocks else "an unscored"
            self._demand_alike(f"{what} optimizer step")
        if not skips:
            self._score_late()
        if self._weight == 0:
            self._stepping = not skips
            return
        if not self._pending and not self._gradients(k):
            return  # a batch was skipped: nothing moves
        if not self.blocks:
            self._advice.once(
                "An optimizer step came without an attribution.batch(ids) block before it and was "
                "not scored. Wrap forward and backward in a block, or the step in "
                "attribution.paused()."
            )
            self.drop(moved=True, by=k)
            return
        if skips:
            self.drop()
            return
        self._advice.of_strangers(self._optimizers, self.capture)
        with self.watch:
            try:
                blocks = self._pending.blocks
                self._scorer.before_step(self.capture, blocks)
                if not self._scorer.validation.reads_late:
                    self._scorer.conclude(self.capture, blocks)
            except Exception:
                self.drop(moved=True, failed=True)
                raise
        self._advice.of_cancelling(self._scorer.untold)
        if self._scorer.validation.weights_edited:
            self._advice.of_edited_weights()
        self.auditing.before_step(self._scorer, self._pending.unowned)
        self._stepping = True

    def _gradients(self, k: int) -> bool:
        """Whether the k-th optimizer has any gradient to step by."""
        return any(p.grad is not None for p in trained_parameters(self._optimizers.members[k]))

    def _demand_alike(self, where: str) -> None:
        """Raises where other processes are somewhere else."""
        try:
            self._scorer.processes.demand_alike(where)
        except Exception:
            self.drop(moved=True, failed=True)
            raise

    def _before_another(self, k: int) -> None:
        """Before another optimizer of a step that was read already."""
        try:
            self._scorer.demand_unchanged(k)
        except Exception:
            self.drop(moved=True, failed=True)
            raise

    def after(self, k: int) -> None:
        """After the k-th optimizer stepped: when all of them have, the step is scored."""
        self._optimizers.stepped(k)
        if self._stepping:
            self._stepped.add(k)
            if len(self._stepped) == len(self._optimizers.members):
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
        if not self._stepped:
            return
        if self._weight == 0:
            self.taken += 1
            self.drop(moved=True)
            return
        try:
            with self.watch:
                self.taken += 1
                weight, late = self._weight or 1.0, self._scorer.validation.reads_late
                blocks = self._pending.blocks
                unread = self._scorer.after_step(
                    self.capture, blocks, self._stepped, self.taken,
                    self._read_late if late else None,
                )  # fmt: skip
                step = Step(self.taken, weight, self._pending.ids)
                if unread is None:
                    self._late = step
                    return
                if late:
                    self.booking.book_later(step, unread)
                    return
                scored = self.booking.book(step, unread)
            self._check(scored)
        except ReadTooLateError as error:
            self._at_once = True
            self._advice.once(f"{error} Further steps' numbers are read before they are taken.")
            self._scorer.forget(moved=True)
        except BaseException:
            self._scorer.validation.forget()  # its last pass is that of the weights before the step
            raise
        finally:
            self.drop()

    def _read_late(self) -> list[Block]:
        """What was taken down before the step, read now that the closing pass is queued."""
        self._conclude()
        blocks = self._pending.blocks
        if not self._scorer.validation.proven():
            raise ReadTooLateError(
                "Weights were edited between two steps past PyTorch's version counters (.data, or "
                "an optimizer's fused step that was not attached), and the step after it was not "
                "scored. Wrap such edits in attribution.paused()."
            )
        self._scorer.conclude(self.capture, blocks)
        return blocks

    def _score_late(self) -> None:
        """Scores the step before, where it waits for the gradients that are there now."""
        step, self._late = self._late, None
        if step is not None:
            with self.watch:
                unread = self._scorer.score_late()
                if unread is None:
                    return
                if self._scorer.validation.reads_late:
                    self.booking.book_later(step, unread)
                else:
                    self.booking.book(step, unread)

    def _check(self, scored: Scored) -> None:
        """The audit's part of a step's end."""
        if not self.auditing.has_played:
            return
        facts = {
            "residual": self._record.latest_residual_share,
            "capture": "stream" if isinstance(self.capture, Stream) else "hold",
            "covered": self.capture.coverage.share,
            "low_precision": self.capture.low_precision,
            "forecast_error": self._scorer.forecast_error,
        }
        checks = self.auditing.after_step(self.taken, scored, facts)
        if checks is not None:
            self._record.audited(checks)

    def _unscored(self, k: int) -> None:
        """The k-th optimizer moves its parameters without being scored: ends what that ends."""
        self._late = None
        self.booking.complete()
        moving = {
            id(p) for p in trained_parameters(self._optimizers.members[k]) if p.grad is not None
        }
        if self.paying.pause([n for n, p in self.capture.trained.items() if id(p) in moving]):
            self.paying.settle()

    def settle(self, *, parted: bool = False) -> None:
        """Ends what waits for later steps.

        Steps that momentum still pays get what it paid so far; one that waits for the next step's
        gradient is not scored.

        Args:
            parted: other processes may be elsewhere, and are not waited for.
        """
        self._late = None
        self.booking.complete()
        self.paying.settle(parted=parted)

    def drop(self, *, moved: bool = False, failed: bool = False, by: int | None = None) -> None:
        """Forgets the step under way.

        Args:
            moved: weights may have changed without being scored.
            failed: an error is the reason, maybe in this process alone.
            by: the number of the optimizer that alone moves them.
        """
        try:
            if moved and by is not None:
                self._unscored(by)
            elif moved:
                self.settle(parted=failed)
        finally:
            self._stepping, self._weight = False, None
            self._stepped.clear()
            self._pending.clear()
            self.auditing.cancel()
            self.capture.check.next_step()
            self._scorer.forget(moved=moved)

    def _new_capture(self) -> Capture:
        capture = build_capture(
            self._capture_kind,
            self._model,
            self._optimizers,
            self._scorer,
            self._scorer.processes,
        )
        if self._utility.batches:
            self_test(capture, self._model, self._utility, sums=self._self_test)
            if self._self_test:
                self._advice.of_random_loss(self._model, self._utility)
        return capture

    def _refresh_capture(self) -> None:
        """Takes note of parameters that were added, frozen or thawed since the last block."""
        present = {id(p) for p in self._optimizers.parameters() if p.requires_grad}
        if not self._pending and present != {id(p) for p in self.capture.trained.values()}:
            self._late = None
            self.booking.complete()
            self.capture = self._new_capture()  # windows of momentum go on: see `Payouts`
