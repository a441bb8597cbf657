"""The object that a training loop holds: blocks in, tables out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from inrun.attribution._audit import Audit
from inrun.attribution._closures import Arguments, gave_nothing, with_closure_run
from inrun.attribution._demands import demand_losses, demand_whole_directions
from inrun.attribution._frequency import Frequency
from inrun.attribution._ids import IdReader
from inrun.attribution._live import LiveLine
from inrun.attribution._open_block import OpenBlock
from inrun.attribution._record import Record
from inrun.attribution._results import Results
from inrun.attribution._resume import Resume
from inrun.attribution._schedule import AuditSchedule
from inrun.attribution._scorer import Scorer
from inrun.attribution._step_hooks import StepHooks, release, warn_unheld
from inrun.attribution._steps import Steps
from inrun.attribution._tokens import TokenLosses, Tokens
from inrun.capture import Hold, Stream
from inrun.errors import MisuseError, NotSupportedError
from inrun.ledger import Extra, RunFolder
from inrun.optim import Together
from inrun.owners import ownership
from inrun.utility import Utility


class Attribution(Results):
    """What `inrun.attach` returns; see there. Built by it, not by hand."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        scorer: Scorer,
        capture: type[Hold] | type[Stream],
        folder: RunFolder | None,
        frequency: Frequency,
        extra: Extra,
        progress: bool,
        check: bool,
    ):
        self._model, self._optimizers, self._utility = model, optimizers, utility
        self._scorer, self._ids, self._open = scorer, IdReader(), OpenBlock()
        first = scorer.processes.rank == 0
        self._record = Record(utility.targets, utility.weights, folder, first=first, extra=extra)
        line = LiveLine(progress and first)
        self._steps = Steps(
            model, optimizers, utility, scorer, capture, self._record, line, frequency, check
        )
        kind = {
            "estimator": scorer.estimator,
            "targets": utility.targets,
            "weights": utility.weights,
            "capture": capture.__name__.lower(),
            "sampled": frequency.sampled,
            "payout": 0 if scorer.payouts is None else scorer.payouts.window,
        }
        self._resume = Resume(kind, self._steps, scorer, self._record, self._ids)
        if folder is not None:
            folder.create()
        self._hooks = StepHooks(self, optimizers.members)
        book = self._steps.booking.end
        self._release = weakref.finalize(
            self, release, self._hooks, line, book, self._record, folder
        )
        self._unheld = weakref.finalize(self, warn_unheld, weakref.ref(self), self._steps.watch)

    # ---- in the loop

    @contextmanager
    def batch(self, ids: Iterable[Any], *, rows: Any = None, slots: Any = None) -> Iterator[None]:
        """Runs one forward and backward pass of these samples inside.

        Args:
            ids: one id per row of the tensors that come in, ints or strings; the same id may come
                again, also in one batch. Several blocks before one optimizer step are gradient
                accumulation.
            rows: where a sample has several rows, or ids are in another order than rows: for each
                row the place of its sample in `ids`. For pairs [0, 1, ..., n-1, 0, 1, ..., n-1].
            slots: where rows hold several samples (packed texts, nodes of graphs): an integer
                tensor over the axes with which the data begins, the place in `ids` of each slot's
                sample, -1 for slots of no sample.

        Raises:
            MisuseError: ids that do not fit the batch, no backward pass inside, nested blocks.
            InvariantError: the samples' shares do not sum to the gradient. On a GPU this is told
                later: by the next block, or by `optimizer.step()`.
            ReplaceLayerError: a layer makes samples depend on each other.
        """
        with self._block(ids, rows, slots, at_backward=False):
            yield

    def open_batch(self, ids: Iterable[Any], *, rows: Any = None, slots: Any = None) -> None:
        """Begins a block that ends by itself with the first `loss.backward()` after it.

        For callbacks of frameworks, which have no place for a `with` around the forward and the
        backward pass. See `batch`.

        Args:
            ids: one id per row of the batch.
            rows: see `batch`.
            slots: see `batch`.
        """
        self.close_batch()
        self._open.begin(self._block(ids, rows, slots, at_backward=True))

    def close_batch(self, *, failed: bool = False, skipped: bool = False) -> None:
        """Takes an open block's eyes off the loop; the next block and the step do it too.

        Args:
            failed: the pass came to no end and is not to be scored.
            skipped: there may have been no backward pass, and then nothing is to be scored.

        Raises:
            MisuseError: there was no backward pass in it.
        """
        if failed or (skipped and not self._steps.ended):
            self._open.abandon()
        else:
            self._open.close()

    @contextmanager
    def _block(
        self, ids: Iterable[Any], rows: Any, slots: Any, *, at_backward: bool
    ) -> Iterator[None]:
        self._refuse_detached()
        self._hooks.demand_in_place()
        if self._steps.inside:
            raise MisuseError(
                "attribution.batch blocks cannot be nested, nor be inside unattributed()."
            )
        if self._steps.paused:
            yield
            return
        self._steps.finish()
        names = self._ids.read(ids)
        owned = ownership(len(names), rows, slots, names)
        with self._steps.block(names, owned, at_backward=at_backward):
            yield

    @contextmanager
    def unattributed(self) -> Iterator[None]:
        """Runs a backward pass inside whose gradient belongs to no sample.

            with attribution.batch(ids):
                loss_fn(model, batch).backward()
            with attribution.unattributed():
                (1e-4 * sum(p.abs().sum() for p in model.parameters())).backward()
            optimizer.step()

        For penalties on parameters (L1, EWC), gradient penalties, and whatever else is added to
        `.grad`. What it does in the step is the books' entry `unattributed`; samples' values are
        those of the real step, to which it belongs. It may come before, between or after the
        blocks of a step, and a copy of the gradients is held while it runs.

        Raises:
            MisuseError: inside a block.
            NotSupportedError: sharded parameters.
        """
        self._refuse_detached()
        self._open.close()
        if self._steps.inside:
            raise MisuseError(
                "attribution.unattributed() inside an attribution.batch(ids) block: close the "
                "block first, so that it is known which gradient is the samples'."
            )
        if self._steps.paused:
            yield
            return
        self._hooks.demand_in_place()
        self._steps.finish()
        with self._steps.unattributed():
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside are trained as ever and not scored; the books show a gap."""
        before, self._steps.paused = self._steps.paused, True
        try:
            yield
        finally:
            self._steps.paused = before

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
        demand_losses(self._scorer, "An audit")
        if self._steps.capture.sharded:
            raise NotSupportedError(
                "An audit plays steps out on whole copies of the model, and this one's parameters "
                "are sharded (fully_shard). Audit a run of a smaller model, or one under "
                "DistributedDataParallel."
            )
        schedule = AuditSchedule(seconds, steps, self._steps.taken + 1, seed)
        return self._steps.auditing.begin(
            self._model, self._optimizers.members, self._utility, schedule, groups,
            self._scorer.processes,
        )  # fmt: skip

    def per_token(
        self, token_losses: TokenLosses, store: str | os.PathLike[str] | None = None
    ) -> Tokens:
        """Splits every value among the terms of the sample's loss, such as a text's tokens.

            tokens = attribution.per_token(token_losses, "run")
            with attribution.batch(ids), tokens.batch(ids, batch, words):
                token_losses(model, batch).sum().backward()

        It costs a forward and a double backward pass a step, and a copy of the trained weights.
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
        demand_losses(self._scorer, "A value a token")
        demand_whole_directions(self._scorer, self._steps.capture)
        if self._steps.capture.sharded or (store is not None and self._scorer.processes.size > 1):
            raise NotSupportedError(
                "Values a token are kept by one process, and computed from whole parameters. With "
                "several processes leave store out and read `latest` in each; under fully_shard "
                "they are not computed."
            )
        folder = None if store is None else self._record.tokens(store)
        steps = self._steps  # which does not know this attribution: nothing may keep it alive
        return Tokens(
            self._scorer, self._model, self._utility.weights,
            lambda: steps.capture.trained, lambda: steps.blocks, token_losses, folder,
        )  # fmt: skip

    # ---- from one process to the next

    @property
    def attached(self) -> bool:
        """Whether steps are still scored."""
        return self._release.alive

    def state_dict(self) -> dict[str, Any]:
        """What a training checkpoint must keep, so that a killed run can go on.

        Plain tensors and strings: `torch.save` it beside the model's and the optimizer's state, and
        read it with `torch.load(..., weights_only=True)`. The store is flushed and its position
        noted; the state holds totals a sample, and without a store the books. Nothing is changed in
        this run. One that goes on from the state has what waits for later steps ended there: with
        `Utility.next_batch()` the last step is not scored, and with `payout` the samples of open
        windows have what momentum did for them until then; what it does after is booked as from
        before the window. With several processes and `payout` all of them call it.

        Raises:
            MisuseError: called between a backward pass and its optimizer step.
        """
        self._refuse_detached()
        return self._resume.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, after the model and the optimizer were loaded.

        With a store, attach with `resume=True`; what was stored after the checkpoint is moved to
        the store's folder `discarded`, since those steps will be trained again.

        Raises:
            MisuseError: the run was attached in another way.
            StoreError: the state or the store was changed or cut off, or is another run's.
        """
        self._refuse_detached()
        self._resume.restore(state)

    def flush(self) -> None:
        """Writes to the store what is still waiting; without a store, nothing."""
        self._booked.flush(self.coverage())

    def detach(self) -> None:
        """Takes every hook off and flushes the store; tables stay readable. May be called twice.

        Steps that momentum still pays are paid what it did so far: with `payout` and several
        processes all of them call it.
        """
        self._end(failed=False)

    def _end(self, *, failed: bool) -> None:
        self._open.abandon()
        self._unheld.detach()
        self._hooks.remove()
        try:
            self._steps.finish()
            self._steps.booking.end()
            self._steps.drop(moved=True, failed=failed)
        finally:
            try:
                self.flush()  # while the store is still this run's
            finally:
                self._release()
                self._steps.paying.close()

    def __enter__(self) -> Attribution:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)

    # ---- its own affairs

    def _before_step(self, k: int, args: Any, kwargs: Any) -> Arguments | None:
        """The k-th optimizer is about to step; what its step is to be called with, if changed."""
        changed = None if self._steps.paused else with_closure_run(args, kwargs)
        self.close_batch(skipped=gave_nothing(changed))
        self._steps.before(k)
        return changed

    def _after_step(self, k: int) -> None:
        """The k-th optimizer has stepped."""
        self._steps.after(k)

    def _stranger_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer that is not attached has stepped, on this model or on another."""
        if not self._steps.paused:
            self._steps.stranger_stepped(optimizer)

    def _refuse_detached(self) -> None:
        if not self._release.alive:
            raise MisuseError("This attribution was detached. Attach again to go on.")
