"""What has been scored so far: totals a sample, books, and the store where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from inrun.attribution._scorer import Scored
from inrun.errors import MisuseError
from inrun.ledger import (
    LEDGER,
    Ids,
    Run,
    RunFolder,
    Tally,
    books_of,
    ledger_rows,
    residual_shares,
)


class Record:
    """Takes steps in, gives tables out."""

    def __init__(self, targets: Sequence[str], weights: Sequence[float], folder: RunFolder | None):
        self._targets, self._weights, self._folder = targets, weights, folder
        self._tally = Tally(targets, weights)
        self._ledger: list[dict[str, object]] = []
        self._residual = self._size = 0.0
        self.latest: dict[str, Any] = {}

    def add(self, step: int, ids: Ids, scored: Scored) -> None:
        """Adds one step."""
        rows = ledger_rows(
            step, scored.estimator, len(ids), self._targets, self._weights, scored.entries
        )
        self.latest = dict(rows[0])
        self._residual += abs(self.latest["residual"])
        self._size += sum(abs(self.latest[n]) for n in ("samples", "momentum", "weight_decay"))
        self._tally.add(step, ids, scored.values)
        if self._folder is None:
            self._ledger += rows
        else:
            self._folder.add(step, ids, scored.values, rows)

    @property
    def latest_residual_share(self) -> float:
        """The last step's residual over the size of its entries."""
        return float(residual_shares(pa.Table.from_pylist([self.latest]))[0])

    @property
    def residual_share(self) -> float:
        """Residuals so far over the entries' size so far."""
        return self._residual / self._size if self._size else 0.0

    def values(self) -> pa.Table:
        """See `Attribution.values`."""
        return self._tally.table()

    def ledger(self, target: str, coverage: pa.Table) -> pa.Table:
        """See `Attribution.ledger`."""
        if self._folder is not None:
            return self._stored(coverage).ledger(target)
        return books_of(pa.Table.from_pylist(self._ledger, schema=LEDGER), target)

    def visits(self, coverage: pa.Table) -> pa.Table:
        """See `Attribution.visits`."""
        if self._folder is None:
            raise MisuseError("Visits are kept in a store only: attach with store='some/folder'.")
        return self._stored(coverage).visits()

    def flush(self, coverage: pa.Table) -> None:
        """Writes to the store what is still waiting."""
        if self._folder is not None:
            self._folder.flush(coverage)

    def audited(self, checks: pa.Table) -> None:
        """Writes an audit's checks to the store, where there is one."""
        if self._folder is not None:
            self._folder.write_audit(checks)

    def _stored(self, coverage: pa.Table) -> Run:
        assert self._folder is not None
        self._folder.flush(coverage)
        return Run(self._folder.path)
