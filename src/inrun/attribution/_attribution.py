"""The object that a training loop holds: blocks in, tables out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
from torch import nn

from inrun.attribution._advice import Advice, refuse_step
from inrun.attribution._audit import Audit
from inrun.attribution._auditing import Auditing
from inrun.attribution._captures import build_capture
from inrun.attribution._ids import IdReader
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._record import Record
from inrun.attribution._schedule import AuditSchedule
from inrun.attribution._scorer import Scored, Scorer
from inrun.capture import Block, Capture, Hold, Stream, self_test
from inrun.errors import MisuseError
from inrun.ledger import TOTAL, Ids, RunFolder
from inrun.optim import Together
from inrun.utility import Utility


class Attribution:
    """What `inrun.attach` returns; see there. Built by it, not by hand."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Together,
        utility: Utility,
        scorer: Scorer,
        capture: type[Hold] | type[Stream],
        folder: RunFolder | None,
        progress: bool,
        check: bool,
    ):
        self._model, self._optimizers, self._utility = model, optimizers, utility
        self._scorer, self._capture_kind, self._self_test = scorer, capture, check
        self._ids, self._watch = IdReader(), Stopwatch()
        self._record = Record(utility.targets, utility.weights, folder)
        self._pending: list[tuple[Ids, Block]] = []
        self._step = 0
        self._paused = self._inside = self._stepping = False
        self._stepped: set[int] = set()
        self._advice = Advice()
        self._auditing = Auditing(self._watch, self._advice)
        self._capture = self._new_capture()
        if folder is not None:
            folder.create()
        self._line = LiveLine(progress)
        self._release = weakref.finalize(self, _release, self._hooks(), self._line)

    # ---- in the loop

    @contextmanager
    def batch(self, ids: Iterable[Any]) -> Iterator[None]:
        """Runs one forward and backward pass of these samples inside.

        Args:
            ids: one id a row of the batch, ints or strings; the same id may come again, also in
                one batch. Several blocks before one optimizer step are gradient accumulation.

        Raises:
            MisuseError: ids that do not fit the batch, no backward pass inside, nested blocks.
            InvariantError: the samples' shares do not sum to the gradient.
            ReplaceLayerError: a layer makes samples depend on each other.
        """
        self._refuse_detached()
        if self._inside:
            raise MisuseError("attribution.batch blocks cannot be nested.")
        if self._paused:
            yield
            return
        self._finish_step()
        with self._watch:
            names = self._ids.read(ids)
            self._refresh_capture()
            if isinstance(self._capture, Stream):
                self._scorer.block_begins(self._capture, len(self._pending))
            self._auditing.block_begins(
                self._capture, self._step + 1, len(names), first=not self._pending
            )
        self._inside = True
        try:
            with self._capture.block(len(names)) as block:
                yield
        finally:
            self._inside = False
        with self._watch:
            if self._capture.end_block():
                self._pending.clear()  # the loop zeroed the gradients: those samples are not in
                self._auditing.cancel()
            self._pending.append((names, block))
            self._advice.of_gaps(self._capture.coverage)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside are trained as ever and not scored; the books show a gap."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _before_step(self, k: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the k-th optimizer steps: the first of them in a step has all of them read."""
        if self._paused or k in self._stepped:
            self._finish_step()
        if self._stepped:
            self._before_another(k, args, kwargs)
            return
        self._stepping = False
        if self._paused:
            self._drop_pending(moved=True)
            return
        refuse_step(self._optimizers.members[k], args, kwargs)
        if not self._pending:
            self._advice.once(
                "An optimizer step came without an attribution.batch(ids) block before it and was "
                "not scored. Wrap forward and backward in a block, or the step in "
                "attribution.paused()."
            )
            self._drop_pending(moved=True)
            return
        self._advice.of_strangers(self._optimizers, self._capture)
        with self._watch:
            try:
                self._scorer.before_step(self._capture, [block for _, block in self._pending])
            except Exception:
                self._drop_pending(moved=True)
                raise
        self._auditing.before_step(self._scorer)
        self._stepping = True

    def _before_another(self, k: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before another optimizer of a step that was read already."""
        try:
            refuse_step(self._optimizers.members[k], args, kwargs)
            self._scorer.demand_unchanged(k)
        except Exception:
            self._drop_pending(moved=True)
            raise

    def _after_step(self, k: int) -> None:
        if self._stepping:
            self._stepped.add(k)
            if len(self._stepped) == len(self._optimizers.members):
                self._finish_step()

    def _finish_step(self) -> None:
        """Scores what has stepped: when all have, or when the loop goes on without the others."""
        if not self._stepped:
            return
        try:
            with self._watch:
                blocks = [block for _, block in self._pending]
                scored = self._scorer.after_step(self._capture, blocks, self._stepped)
                self._book(_joined([ids for ids, _ in self._pending]), scored)
            self._check(scored)
        finally:
            self._drop_pending()

    def _book(self, ids: Ids, scored: Scored) -> None:
        self._step += 1
        self._record.add(self._step, ids, scored)
        self._line.update(self._record.latest, self._record.residual_share, self.overhead)

    def _check(self, scored: Scored) -> None:
        """The audit's part of a step's end."""
        facts = {
            "residual": self._record.latest_residual_share,
            "capture": "stream" if isinstance(self._capture, Stream) else "hold",
            "covered": self.covered,
            "low_precision": self._capture.low_precision,
            "forecast_error": self._scorer.forecast_error,
        }
        checks = self._auditing.after_step(self._step, scored, facts)
        if checks is not None:
            self._record.audited(checks)

    def _drop_pending(self, *, moved: bool = False) -> None:
        self._stepping = False
        self._stepped.clear()
        self._pending.clear()
        self._auditing.cancel()
        self._capture.check.next_step()
        self._scorer.forget(moved=moved)

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
        """
        self._refuse_detached()
        schedule = AuditSchedule(seconds, steps, self._step + 1, seed)
        return self._auditing.begin(
            self._model, self._optimizers.members, self._utility, schedule, groups
        )

    # ---- what came of it

    def values(self) -> pa.Table:
        """What each sample contributed, over the run so far.

        Returns:
            A row a sample, in the order of ids: `sample_id`; `value`, the contribution to the
            reduction of the validation loss, in its units (positive helped, negative harmed);
            `value_normalised`, the same with each step's values divided by their mean size, which
            ranks better because early steps do not outweigh; `visits`, `first_step`, `last_step`;
            and with several targets one column each, of which `value` is the weighted sum.
        """
        return self._record.values()

    def ledger(self, target: str = TOTAL) -> pa.Table:
        """The books.

        Args:
            target: one of the utility's targets, or 'total' for their weighted sum.

        Returns:
            A row a step: `step`, `estimator` (the method really used), `visits`, `opening_loss`,
            `closing_loss`, `samples`, `momentum`, `weight_decay`, `residual`; the last four add up
            to opening minus closing loss.

        Raises:
            MisuseError: no such target.
        """
        return self._record.ledger(target, self.coverage())

    def visits(self) -> pa.Table:
        """Every single visit: `step`, `sample_id`, `value`, `value_normalised`, and the targets.

        Raises:
            MisuseError: the attribution has no store; visits are kept nowhere else.
        """
        return self._record.visits(self.coverage())

    def coverage(self) -> pa.Table:
        """Which parameters are captured, how, and what share of the gradient they have.

        Returns:
            A row a parameter: `parameter`, `shape`, `elements`, `status` ('captured',
            'not captured', 'no gradient', 'not trained'), `captured_as`, `gradient_share` (of the
            last step's squared gradient norm), `sample_axis` ('measured' or 'assumed'),
            `contraction` ('dense', or the rank and its measured relative error).
        """
        table = self._capture.coverage.table()
        how = [
            self._scorer.contraction.describe(row["parameter"]) if row["captured_as"] else ""
            for row in table.to_pylist()
        ]
        return table.append_column("contraction", pa.array(how, pa.string()))

    @property
    def covered(self) -> float:
        """Share of the last step's squared gradient norm that is captured, 0 to 1."""
        return self._capture.coverage.share

    @property
    def overhead(self) -> float:
        """Time spent in attribution's own passes over the rest of the loop's time, so far.

        The validation passes are in it; what capturing adds inside the forward and the backward
        pass is not.
        """
        return self._watch.overhead

    @property
    def seconds(self) -> float:
        """Time spent in attribution's own passes so far."""
        return self._watch.inside

    def flush(self) -> None:
        """Writes to the store what is still waiting; without a store, nothing."""
        self._record.flush(self.coverage())

    def detach(self) -> None:
        """Takes every hook off and flushes the store; tables stay readable. May be called twice."""
        self._release()
        self._finish_step()
        self._drop_pending(moved=True)
        self.flush()

    def __enter__(self) -> Attribution:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # ---- its own affairs

    def _hooks(self) -> list[Any]:
        """Optimizer hooks that hold the attribution weakly: dropping it detaches it."""
        this = weakref.ref(self)

        def before(k: int, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            attribution = this()
            if attribution is not None:
                attribution._before_step(k, args, kwargs)

        def after(k: int, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            attribution = this()
            if attribution is not None:
                attribution._after_step(k)

        return [
            handle
            for k, optimizer in enumerate(self._optimizers.members)
            for handle in (
                optimizer.register_step_pre_hook(partial(before, k)),
                optimizer.register_step_post_hook(partial(after, k)),
            )
        ]

    def _new_capture(self) -> Capture:
        capture = build_capture(self._capture_kind, self._model, self._optimizers, self._scorer)
        if self._self_test:
            self_test(capture, self._model, self._utility)
        return capture

    def _refresh_capture(self) -> None:
        """Takes note of parameters that were added, frozen or thawed since the last block."""
        present = {id(p) for p in self._optimizers.parameters() if p.requires_grad}
        if not self._pending and present != {id(p) for p in self._capture.trained.values()}:
            self._capture = self._new_capture()

    def _refuse_detached(self) -> None:
        if not self._release.alive:
            raise MisuseError("This attribution was detached. Attach again to go on.")


def _joined(parts: list[Ids]) -> Ids:
    return [i for ids in parts for i in ids]  # type: ignore[return-value]  # all of one kind


def _release(handles: list[Any], line: LiveLine) -> None:
    for handle in handles:
        handle.remove()
    line.close()
