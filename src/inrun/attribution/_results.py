"""What came of an attribution, live: its tables, and how it is doing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from inrun.attribution._loop import Loop
from inrun.attribution._record import Record
from inrun.ledger import TOTAL, expectation
from inrun.scoring import Scorer, Windows
from inrun.utility import HALF


class Results:
    """The part of an `Attribution` that is looked at."""

    _record: Record
    _scorer: Scorer
    _loop: Loop
    _windows: Windows | None

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the utility's targets, `HALF` left out."""
        return tuple(name for name in self._record.targets if name != HALF)

    def values(self) -> pa.Table:
        """What each sample contributed, over the run so far.

        Returns:
            One row per sample, in the order of ids: `sample_id`; `value`, the contribution to the
            reduction of the validation loss, in its units (positive helped, negative harmed);
            `value_normalised`, the same with each step's values divided by their mean size, which
            ranks better because early steps do not outweigh; `visits`, `first_step`, `last_step`;
            and with several targets one column each, of which `value` is the weighted sum. Where
            only some steps are scored, `standard_error` of `value`, and no row for samples that
            were in none of them; a 95 % interval is `value` plus and minus the 0.975 quantile of
            Student's t with `visits` degrees of freedom times it, not 1.96 times. With
            `momentum_window` also `paid_out`, the part of `value` that momentum did, which comes in
            so many steps after each visit.
        """
        return self._record.values()

    def ledger(self, target: str = TOTAL) -> pa.Table:
        """The books.

        Args:
            target: one of the utility's targets, or 'total' for their weighted sum.

        Returns:
            One row per scored step: `step`, `estimator` (the method really used), `visits`,
            `weight` (how many steps it stands for, 1 where all are scored), `opening_loss`,
            `closing_loss`, `samples`, `momentum`, `weight_decay`, `residual`, which four add up
            to weight times (opening minus closing loss), and `paid_out`: what of later steps'
            `momentum` was paid to this step's samples. With `momentum_window` and a
            store, a step has its row when it was paid.

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
        """Which parameters are captured, how, and what share of the update they have.

        Returns:
            One row per parameter: `parameter`, `shape`, `elements`, `status` ('captured',
            'not captured', 'no gradient', 'not trained'), `captured_as`, `update_share` (of the
            squared norm of what gradients moved, learning rate and all, in the last step in which
            it was measured: the 1st, 2nd, 4th and so on, or every one where something is not
            captured), `sample_axis` ('measured' or 'assumed'),
            `contraction` ('dense', or the rank and its measured relative error; where steps were
            scored in windows also how far their values agree with exact ones).
        """
        table = self._loop.capture.coverage.table()
        how = [
            self._scorer.contraction.describe(row["parameter"]) if row["captured_as"] else ""
            for row in table.to_pylist()
        ]
        windows = "" if self._windows is None else expectation(self._windows.told)
        if windows:
            how = [f"{one}; {windows}" if one else "" for one in how]
        return table.append_column("contraction", pa.array(how, pa.string()))

    @property
    def latest(self) -> dict[str, Any]:
        """The last scored step's row of the books, in total; empty before the first."""
        return dict(self._record.latest)

    @property
    def residual_share(self) -> float:
        """The books' residuals so far over the size of their entries so far."""
        return self._record.residual_share

    @property
    def covered(self) -> float:
        """Share of the update that is captured, 0 to 1.

        Of the squared norm of what the last step's gradients moved: lr * (u(g) - u(0)).
        """
        return self._loop.capture.coverage.share

    @property
    def overhead(self) -> float:
        """Time spent in attribution's own passes over the rest of the loop's time, so far.

        The validation passes are in it; what capturing adds inside the forward and the backward
        pass is not.
        """
        return self._loop.watch.overhead

    @property
    def sampling(self) -> dict[str, Any]:
        """Which share of the steps was scored, and what that costs in accuracy.

        `steps` taken and `scored`; `relative_error`, the totals' standard error over their size,
        root mean squares over all samples, those without a scored step among them; infinite where
        too few steps were scored to tell. With `inrun.Budget` also `every` and `parts` (of the
        validation rows, one a pass), as they are now, and as soon as both kinds of step were timed
        `extra`, what scoring adds to a step's time, `expected`, to the training's from now on, and
        `spent`, so far in plain steps; `window`, the steps of scoring windows (0: none in use), and
        `choice`, a sentence on what is done and which accuracy to expect of it.
        """
        error = self._record.relative_error
        counts = {"steps": float(self._loop.taken), "scored": float(self._loop.booking.scored)}
        return {**counts, "relative_error": error, **self._loop.frequency.describe()}

    @property
    def windows(self) -> list[dict[str, float]]:
        """With `inrun.Window`, what is known of each window that is over.

        `first` step and number of `steps`; `cosine` of the directions at its ends, `captured`, the
        share of the closing one that the bases hold; `residual` of its books over their entries,
        NaN without books; `expected`, the least rank correlation with exact values that trainings
        of such a cosine had (docs/evidence/window.md); `agreement`, that of its own visits, of one
        window in fifty, from the tenth on, whose steps are scored exactly as well: NaN of others.
        """
        told = [] if self._windows is None else self._windows.told
        return [{**window._asdict(), "expected": window.expected} for window in told]

    @property
    def waiting(self) -> dict[str, float]:
        """With `momentum_window`, what waits for momentum, and what it takes.

        `steps` whose samples are still paid; `bytes` in memory and `disk_bytes` in files that are
        held for them, and `full_bytes` and `full_disk_bytes`, what that will be when the window is
        full, from the first scored step on, give or take one copy of the weights per target. In the
        first step inputs that are parts of one large tensor count as the whole of it. `not_acted`
        is the share of what these steps put into the momentum that has not moved the weights yet.
        """
        return self._loop.booking.waiting()

    def balance(self, target: str = TOTAL) -> dict[str, float]:
        """The books so far in one row: what the validation loss fell by, and by what.

        Args:
            target: one of the utility's targets, or 'total' for their weighted sum.

        Returns:
            `fall`, the first opening minus the last closing loss, and the entries: `immediate`,
            what samples did in their own steps; `paid_out`, what momentum did later and they were
            paid; `still_in_momentum`, what it did within `momentum_window` steps of theirs and they
            will be paid when the window is over; `before_window`, what it did of gradients that are
            older or were not scored (all of momentum without `momentum_window`); `weight_decay`;
            `residual`. The six add up to `fall` where every step was scored. With several
            processes all call it.

        Raises:
            MisuseError: no such target.
        """
        return self._record.balance(target, self.coverage(), self._loop.booking.owed())

    @property
    def seconds(self) -> float:
        """Time spent in attribution's own passes so far."""
        return self._loop.watch.inside
