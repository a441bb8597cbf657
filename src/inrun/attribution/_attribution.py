"""The object that a training loop holds: blocks in, tables out."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from inrun.attribution._advice import Advice
from inrun.attribution._batches import Batches
from inrun.attribution._captures import Captures
from inrun.attribution._checkpoint import Checkpoint
from inrun.attribution._frequency import Frequency
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._loop import Loop
from inrun.attribution._options import CAPTURES, Options
from inrun.attribution._record import Record
from inrun.attribution._results import Results
from inrun.capture import Sketching
from inrun.distributed import agreed
from inrun.errors import InRunWarning, NotSupportedError
from inrun.ledger import Extra, RunFolder, is_rounding
from inrun.momentum import Payouts
from inrun.optim import StepHooks
from inrun.owners import IdReader
from inrun.scoring import Scorer, TokenLosses, Tokens, Windows, require_whole_directions
from inrun.truth import Audit, Auditor, AuditSchedule, AuditUtility
from inrun.utility import Utility


class Attribution(Batches, Results):
    """What `inrun.attach` returns; see there. Built by it, not by hand."""

    def __init__(
        self,
        model: nn.Module,
        utility: Utility,
        scorer: Scorer,
        window: Payouts | None,
        folder: RunFolder | None,
        frequency: Frequency,
        extra: Extra,
        options: Options,
        windows: Windows | None = None,
        *,
        sampled: bool = False,
    ):
        self._model, self._utility = model, utility
        self._scorer, self._window = scorer, window
        self._ids, self._open = IdReader(), ExitStack()
        first = scorer.processes.rank == 0
        self._record = Record(utility.targets, utility.weights, folder, first=first, extra=extra)
        line, advice = LiveLine(options.progress and first), Advice()
        captures = Captures(
            CAPTURES[options.capture] if windows is None else Sketching, model,
            scorer.optimizers, utility, scorer.processes, advice, sums=options.self_test,
        )  # fmt: skip
        advice.of_stale(utility.refresh)
        self._windows = windows
        self._loop = Loop(captures, scorer, window, frequency, advice, self._record, line, windows)
        kind = {
            "estimator": scorer.estimator,
            "targets": list(utility.targets),
            "weights": list(utility.weights),
            "capture": options.capture if windows is None else "window",
            "sampled": sampled,
            "payout": 0 if window is None else window.window,
        }
        agreed(scorer.processes, lambda: None if folder is None else folder.create())
        self._checkpoint = Checkpoint(kind, self._loop, scorer, window, self._record, windows)
        self._hooks = StepHooks(self, scorer.optimizers.members, Attribution._stranger_stepped)
        self._release = weakref.finalize(
            self, _release, self._hooks, line, self._record, folder, windows
        )
        self._unheld = weakref.finalize(self, _warn_unheld, weakref.ref(self), self._loop.watch)

    def __repr__(self) -> str:
        last = self.latest
        if not last:
            return f"<Attribution: no step scored yet; targets: {', '.join(self.targets)}>"
        small = " (the last: rounding of losses in single precision)" if is_rounding(last) else ""
        return (
            f"<Attribution: last scored step {last['step']}, validation loss "
            f"{last['closing_loss']:.4g}; covered {self.covered:.3f}, residual "
            f"{self.residual_share:.2%} of the ledger's entries{small}; targets: "
            f"{', '.join(self.targets)}>"
        )

    def audit(
        self, *, seconds: float, steps: int, groups: int | None = None, seed: int = 0
    ) -> Audit:
        """Checks the values against the truth at random steps of the training that follows.

        A step that is drawn is played out on copies of the model and the optimizer before it is
        taken: its samples in random groups, every coalition of groups a real step and a real
        validation loss, under the fixed-state assumption. Training is not changed. The copies, and
        a gradient a group, are held for as long as a check runs.

        Args:
            seconds: what all checks together may take. It is kept to within one check.
            steps: how many optimizer steps are to come; checks are spread over them.
            groups: of samples a check, 3 to 8: 2^(groups + 1) coalitions. Where it is not given,
                as many as leave time for about a dozen checks.
            seed: of the steps and the groups that are drawn.

        Returns:
            What is filled while training goes on; `print(audit.report())` at its end. With a store
            the command `inrun audit RUN` prints the same.

        Raises:
            MisuseError: numbers out of range.
            NotSupportedError: sharded parameters.
        """
        self._refuse_detached()
        if not self._loop.leave_windows():
            raise NotSupportedError(
                "An audit needs the shares of the steps that it plays out, and a scoring window "
                "keeps sketches of them. Audit a run with scoring=inrun.EveryStep()."
            )
        if self._loop.capture.sharded:
            raise NotSupportedError(
                "An audit plays steps out on whole copies of the model, and this one's parameters "
                "are sharded (fully_shard). Audit a run of a smaller model, or one under "
                "DistributedDataParallel."
            )
        scorer, loop = self._scorer, self._loop
        schedule = AuditSchedule(seconds, steps, loop.taken + 1, seed)
        auditor = Auditor(
            loop.watch.stopped, loop.advice.once, self._model, scorer.optimizers.members,
            AuditUtility(self._utility, self._model, scorer.processes), schedule, groups,
            scorer.processes,
        )  # fmt: skip
        loop.audit(auditor)
        return auditor.audit

    def per_token(
        self, token_losses: TokenLosses, store: str | os.PathLike[str] | None = None
    ) -> Tokens:
        """Splits every value among the terms of the sample's loss, such as a text's tokens.

            tokens = attribution.per_token(token_losses, "run")
            with attribution.batch(ids), tokens.batch(ids, batch, words):
                token_losses(model, batch).sum().backward()

        It costs a forward and a double backward pass per step, and a copy of the trained weights.
        Attach with `contraction="dense", smoothed_steps=0`: a smoothed value is no sum over terms.

        Args:
            token_losses: `token_losses(model, batch)` gives terms (B, T) that add up to the loss on
                which the loop calls `backward()`; 0 at padding.
            store: the run's folder, to keep them as `tokens/*.parquet`; None keeps the last step's
                in `latest`.

        Raises:
            MisuseError: smoothing, a low rank, or capture 'stream', which has no whole directions.
            NotSupportedError: sharded parameters, or a store and several processes.
        """
        self._refuse_detached()
        if not self._loop.leave_windows():
            raise NotSupportedError(
                "Values per token need each step's own direction, and a scoring window has one for "
                "all its steps. Attach with scoring=inrun.EveryStep()."
            )
        require_whole_directions(self._scorer, self._loop.capture, window=self._window is not None)
        if self._loop.capture.sharded or (store is not None and self._scorer.processes.size > 1):
            raise NotSupportedError(
                "Values per token are kept by one process, and computed from whole parameters. "
                "With several processes leave store out and read `latest` in each; under "
                "fully_shard they are not computed."
            )
        folder = None if store is None else self._record.tokens(store)
        loop = self._loop  # which does not know this attribution: nothing may keep it alive
        tokens = Tokens(
            self._model, self._utility.weights, lambda: loop.capture.trained,
            lambda: loop.blocks, token_losses, folder,
        )  # fmt: skip
        loop.listen(tokens)
        return tokens

    @property
    def attached(self) -> bool:
        """Whether steps are still scored."""
        return self._release.alive

    def state_dict(self) -> dict[str, Any]:
        """What a training checkpoint must keep, so that a killed run can go on.

        Plain tensors and strings: `torch.save` it beside the model's and the optimizer's state, and
        read it with `torch.load(..., weights_only=True)`. The store is flushed and its position
        noted; the state holds totals per sample, and without a store the books. Nothing is changed
        in this run. One that goes on from the state has what waits for later steps ended there:
        with `momentum_window` the samples of open windows have what momentum did for them until
        then; what it does after is booked as from before the window. A scoring window that is open
        is closed by a validation pass first. With several processes and either of them all
        processes call it.

        Raises:
            MisuseError: called between a backward pass and its optimizer step.
        """
        self._refuse_detached()
        return self._checkpoint.state(self._ids)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, after the model and the optimizer were loaded.

        With a store, attach with `resume=True`; what was stored after the checkpoint is moved to
        the store's folder `discarded`, since those steps will be trained again.

        Raises:
            MisuseError: the run was attached in another way.
            StoreError: the state or the store was changed or cut off, or is another run's.
        """
        self._refuse_detached()
        self._ids = self._checkpoint.restore(state)

    def flush(self) -> None:
        """Writes to the store what is still waiting; without a store, nothing."""
        self._record.flush(self.coverage())

    def detach(self) -> None:
        """Takes every hook off and flushes the store; tables stay readable. May be called twice.

        Steps that momentum still pays are paid what it did so far: with `momentum_window` and
        several processes all of them call it.
        """
        self._end(failed=False)

    def _end(self, *, failed: bool) -> None:
        self._unheld.detach()
        self._hooks.remove()
        try:
            self._leave(abandoned=True)
            self._loop.finish()
            self._loop.forget(moved=True, failed=failed)
        finally:
            try:
                self.flush()  # while the store is still this run's
            finally:
                self._release()
                self._loop.booking.close()

    def __enter__(self) -> Attribution:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)


def _warn_unheld(this: weakref.ref[Any], watch: Stopwatch) -> None:
    """Says that an attribution was collected before it had anything to score.

    At the end of the program, when it may still be held, it says nothing.
    """
    if this() is None and not watch.started:
        warnings.warn(
            "An attribution was collected without having scored a step: nobody holds it, and "
            "dropping it detaches it. Keep what inrun.attach returns for as long as training goes "
            "(attribution = inrun.attach(...)), and wrap each step in attribution.batch(ids).",
            InRunWarning,
            stacklevel=2,
        )


def _release(
    hooks: StepHooks,
    line: LiveLine,
    record: Record,
    folder: RunFolder | None,
    windows: Windows | None,
) -> None:
    """Takes hooks off the optimizers and the line off the screen, and stores what still waits.

    It is called by `detach`, and where that was never called when the attribution goes out of use
    or the program ends. Steps of a scoring window that is open cannot be valued without its closing
    pass: it says so. Steps that momentum still pays are stored with what they have.
    """
    hooks.remove()
    line.close()
    if windows is not None and windows.waiting:
        first, last = windows.waiting[0], windows.waiting[-1]
        warnings.warn(
            f"Steps {first} to {last} are in no value and in no row of the ledger: their scoring "
            "window was still open when the attribution went out of use or the program ended. "
            "Call attribution.detach() when training is over, or use attach as a context manager.",
            InRunWarning,
            stacklevel=2,
        )
    if folder is None:
        return
    try:
        if folder.path.exists() and not folder.superseded:
            record.let_go()
            folder.flush()
    finally:
        folder.close()
