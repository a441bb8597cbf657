"""From blocks to booked steps: what the loop's blocks and the optimizers' hooks set off, in order.

A step begins with its first block of samples and is over when every attached optimizer has stepped,
or when the loop goes on without the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from inrun.attribution._advice import Advice
from inrun.attribution._booking import Booking
from inrun.attribution._captures import Captures
from inrun.attribution._frequency import Frequency
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._passes import Passes
from inrun.attribution._record import Record
from inrun.momentum import Payouts
from inrun.optim import skipped, trained_parameters
from inrun.scoring import Scored, Scorer, Stage, Step, Tokens, Windows
from inrun.truth import Auditor


class Loop(Passes):
    """The step under way through its further stages, into the record; see `Passes`."""

    def __init__(
        self,
        captures: Captures,
        scorer: Scorer,
        window: Payouts | None,
        frequency: Frequency,
        advice: Advice,
        record: Record,
        line: LiveLine,
        windows: Windows | None = None,
    ):
        watch = Stopwatch()
        super().__init__(captures, scorer, window, frequency, advice, watch, windows)
        self._optimizers, self._record = scorer.optimizers, record
        self.booking = Booking(record, line, watch, advice, scorer.processes, window)
        self.paused = False
        self._tokens: Tokens | None = None
        self._audited: Mapping[str, Any] | None = None  # an audit that a checkpoint had in it

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

    def audit(self, auditor: Auditor) -> None:
        """Has it look on, in place of one that still does."""
        self._auditor = auditor
        if self._audited is not None:
            auditor.restore(self._audited)
            self._audited = None

    def audit_state(self) -> Mapping[str, Any] | None:
        """What a checkpoint keeps of an audit that is going on; None where none is."""
        auditor = self._auditor
        return None if auditor is None or auditor.over else auditor.state()

    def go_on(self, taken: int, audit: Mapping[str, Any] | None) -> None:
        """Nothing is under way in a run that goes on.

        The audit is for the one there is, or for the next that begins.
        """
        self.taken = taken
        self.forget(moved=True)
        self._audited = audit
        if self._auditor is not None:
            self.audit(self._auditor)

    # ---- read

    def before(self, k: int) -> None:
        """Before the k-th optimizer steps: the first of them in a step has all of them read."""
        if self.paused or (self._step is not None and k in self._step.stepped):
            self.finish()
        step = self._step
        if step is not None and step.stage is Stage.TAKEN:
            with self._forgotten_where_it_fails():
                step.require_unchanged(k)
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
            self._scorer.processes.require_alike(f"{what} optimizer step")
        moving = trained_parameters(self._optimizers.members[k])
        if not self.pending and not any(p.grad is not None for p in moving):
            return  # a batch was skipped: nothing moves
        if self.blocks and skips:
            self.forget()
            return
        if step is not None and self.blocks:
            self._read(step, k)
        if not self.blocks:
            self.advice.once(
                "An optimizer step came without an attribution.batch(ids) block before it and was "
                "not scored. Wrap forward and backward in a block, or the step in "
                "attribution.paused()."
            )
            self.forget(moved=True, by=k)

    def _read(self, step: Step, first: int) -> None:
        """Reads the step before its first optimizer; one of no samples is left as it is."""
        self.advice.of_strangers(self._optimizers, self.capture)
        with self.watch, self._forgotten_where_it_fails():
            step.read_before_step(self.capture)
            self._conclude(step)
            if not step.owned:  # the loop zeroed what came in of them
                return
            step.plan(self.capture, first)
            if self._windows is not None:
                self._windows.learn(step, self.capture)
        self.advice.of_cancelling(self._scorer.untold)
        if self._scorer.validation.weights_edited:
            self.advice.of_edited_weights()
        if self._auditor is not None:
            self._auditor.before_step(step)

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
                del step  # what it holds goes before checks take memory of their own
                self.finish()
                self.capture.step_over()

    def stranger_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        validation = self._scorer.validation
        if validation.surroundings.holds(moved):
            validation.disturb()
        scored = {id(p) for p in self.capture.trained.values()}
        if any(id(p) in scored for p in moved):
            self.advice.of_another_optimizer(type(optimizer).__name__)

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
                results = self._with_news(step.results(self.capture, self._tokens))
                for past, scored in results:
                    if self._tokens is not None:
                        self._tokens.scored(past.number, past.weight, scored.values)
                    self.booking.book(past, scored)
            for past, scored in results:
                self._check(past, scored)
            if self._windows is not None and results:
                self.advice.of_windows(self._windows.told[-1:])
        except BaseException:
            self._scorer.validation.forget()  # its last pass is that of the weights before the step
            raise
        finally:
            self.forget()

    def _with_news(self, results: list[tuple[Step, Scored]]) -> list[tuple[Step, Scored]]:
        """With what the budget decided in the note of the first of them."""
        news = self.frequency.take_news() if results else ""
        if not news:
            return results
        (step, scored), *rest = results
        note = "; ".join(filter(None, (scored.entries.note, f"the budget's choice: {news}")))
        return [(step, scored._replace(entries=scored.entries._replace(note=note))), *rest]

    def leave_windows(self) -> bool:
        """Goes on without scoring windows, which an audit cannot do with; False where it cannot."""
        if self._windows is not None:
            if not self.frequency.leave_windows():
                return False
            self.close_window()
        return True

    def close_window(self) -> None:
        if self._windows is not None:
            with self.watch:
                for past, scored in self._windows.close(self.capture):
                    self.booking.book(past, scored)

    def _check(self, step: Step, scored: Scored) -> None:
        """The audit's part of a step's end."""
        if self._auditor is None or not self._auditor.has_played:
            return
        facts = {
            "estimator": scored.estimator,
            "residual": self._record.latest_residual_share,
            "capture": "stream" if self.capture.contracts_early else "hold",
            "covered": self.capture.coverage.share,
            "low_precision": self.capture.low_precision,
            "forecast_error": self._scorer.forecast.error,
            "judged": self._scorer.validation.judged,
        }
        checks = self._auditor.after_step(step.number, scored.values, facts)
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
        if self._auditor is not None:
            self._auditor.cancel()
        self.capture.next_step()
        if not moved:
            return
        if failed and self._windows is not None:
            self._windows.drop()
        self.close_window()
        self._scorer.validation.forget()
        if by is None:
            self.booking.pay_out(parted=failed)
            return
        held = trained_parameters(self._optimizers.members[by])
        moving = {id(p) for p in held if p.grad is not None}
        self.booking.pause([n for n, p in self.capture.trained.items() if id(p) in moving])
