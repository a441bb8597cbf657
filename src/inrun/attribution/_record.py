"""What has been scored so far: totals per sample, books, and the store where there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inrun.errors import MisuseError, StoreError
from inrun.ledger import (
    ENTRIES,
    LEDGER,
    TOTAL,
    Extra,
    Ids,
    Run,
    RunFolder,
    RunningTotals,
    TokenFolder,
    as_table,
    as_tensor,
    balance,
    books_of,
    in_present_columns,
    ledger_rows,
    residual_shares,
)
from inrun.momentum import Paid
from inrun.scoring import Scored

CLOSED = ("visits", "values", "paid", "rows")


class _Waiting(NamedTuple):
    """A step whose samples momentum still pays."""

    ids: Ids
    values: np.ndarray
    rows: list[dict[str, object]]
    sizes: np.ndarray | None


class Record:
    """Takes steps in, gives tables out."""

    def __init__(
        self,
        targets: Sequence[str],
        weights: Sequence[float],
        folder: RunFolder | None,
        *,
        first: bool = True,
        extra: Extra = None,
    ):
        self._first = first  # of several processes the first has the store
        self.targets = tuple(targets)
        self._targets, self._weights, self._folder = targets, weights, folder
        self._running_totals = RunningTotals(targets, weights, extra)
        self._ledger: list[dict[str, object]] = []
        self._residual = self._size = 0.0
        self._unknown = False  # whether of any step the residual is not known
        self._waiting: dict[int, _Waiting] = {}
        self.latest: dict[str, Any] = {}

    def add(
        self, step: int, ids: Ids, scored: Scored, weight: float, *, waits: bool = False
    ) -> None:
        """Adds one step.

        With `waits` momentum still pays its samples, so that the store gets it later.
        """
        rows = ledger_rows(
            step, scored.estimator, len(ids), self._targets, self._weights, scored.entries, weight
        )
        self.latest = dict(rows[0])
        if isfinite(self.latest["residual"]):  # where losses are not known, neither is that
            self._residual += abs(self.latest["residual"])
            self._size += sum(abs(self.latest[name]) for name in ENTRIES)
        else:
            self._unknown = True
        if self._folder is None:
            self._ledger += rows
        if waits:
            self._waiting[step] = _Waiting(ids, scored.values, rows, scored.sizes)
            return
        self._running_totals.add(step, ids, scored.values, weight)
        if self._folder is not None:
            self._folder.add(step, ids, scored.values, rows, weight, sizes=scored.sizes)

    def pay_out(self, step: int, paid_NK: np.ndarray) -> None:
        """Adds what momentum paid to a step's samples; after this nothing is owed to them."""
        ids, values, rows, sizes = self._waiting.pop(step)
        self._running_totals.add(step, ids, values + paid_NK, paid_BK=paid_NK)
        for row in rows:
            row["paid_out"] = self._of_target(str(row["target"]), paid_NK)
        if self._folder is not None:
            self._folder.add(step, ids, values + paid_NK, rows, paid_BK=paid_NK, sizes=sizes)

    def _of_target(self, target: str, values_NK: np.ndarray) -> float:
        """The sum over samples, of one target or of their total."""
        sums = values_NK.sum(0)
        weights = np.asarray(self._weights)
        return float(sums @ weights if target == TOTAL else sums[list(self._targets).index(target)])

    def let_go(self) -> None:
        """Steps that momentum still pays keep what they have: nothing is owed to them any more."""
        for step, waiting in list(self._waiting.items()):
            self.pay_out(step, np.zeros_like(waiting.values))

    @property
    def latest_residual_share(self) -> float:
        """The last step's residual over the size of its entries."""
        return float(residual_shares(pa.Table.from_pylist([self.latest]))[0])

    @property
    def residual_share(self) -> float:
        """Residuals so far over the entries' size so far; NaN where no residual is known."""
        if self._size:
            return self._residual / self._size
        return nan if self._unknown else 0.0

    @property
    def relative_error(self) -> float:
        """The totals' mean standard error over their mean size; 0 where every step is scored."""
        return self._running_totals.relative_error

    def values(self) -> pa.Table:
        """See `Attribution.values`: steps that momentum still pays with what they have."""
        running_totals = self._running_totals.copy() if self._waiting else self._running_totals
        for step, waiting in self._waiting.items():
            running_totals.add(step, waiting.ids, waiting.values)
        return running_totals.table()

    def ledger(self, target: str, coverage: pa.Table) -> pa.Table:
        """One row per scored step, with its entries; see `Attribution.ledger`."""
        if self._folder is not None:
            return books_of(self._stored(coverage).books(), target)
        return books_of(pa.Table.from_pylist(self._ledger, schema=LEDGER), target)

    def balance(self, target: str, coverage: pa.Table, owed: Sequence[Paid]) -> dict[str, float]:
        """See `Attribution.balance`; `owed` is what is still in the momentum."""
        rows = self._ledger
        stored = LEDGER.empty_table()
        if self._folder is not None:
            stored = self._stored(coverage).books()
            rows = [row for waiting in self._waiting.values() for row in waiting.rows]
        books = books_of(pa.concat_tables([stored, pa.Table.from_pylist(rows, LEDGER)]), target)
        return balance(books, sum(self._of_target(target, paid.values) for paid in owed))

    def visits(self, coverage: pa.Table) -> pa.Table:
        """One row per sample and step; see `Attribution.visits`."""
        if self._folder is None:
            raise MisuseError("Visits are kept in a store only: attach with store='some/folder'.")
        return self._stored(coverage).visits()

    def flush(self, coverage: pa.Table) -> None:
        """Writes to the store what is still waiting."""
        if self._folder is not None:
            self._folder.flush(coverage)

    def tokens(self, store: str | os.PathLike[str]) -> TokenFolder:
        """Where values per token go; the run's own folder counts them."""
        if self._folder is not None and self._folder.path.resolve() == Path(store).resolve():
            return self._folder.tokens()
        return TokenFolder(Path(store))

    def audited(self, checks: pa.Table) -> None:
        """Writes an audit's checks to the store, where there is one."""
        if self._folder is not None:
            self._folder.write_audit(checks)

    def state(self, owed: Sequence[Paid] = ()) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint keeps: with a store its position, without one the books.

        A run that goes on from it has the steps closed to which momentum owes something; this one
        goes on as if there were no checkpoint.
        """
        totals, tables = self._running_totals, dict[str, Tensor]()
        totals = totals.copy() if owed else totals
        closed: dict[object, dict[str, object]] = {}
        for step, paid_NK in owed:
            ids, values, rows, _ = self._waiting[step]
            totals.add(step, ids, values + paid_NK, paid_BK=paid_NK)
            paid = [{**r, "paid_out": self._of_target(str(r["target"]), paid_NK)} for r in rows]
            closed |= {(row["step"], row["target"]): row for row in paid}
            if self._folder is not None:
                tables |= _settled(step, self._waiting[step]._replace(rows=paid), paid_NK)
        tables["values"] = as_tensor(totals.state())
        if self._folder is None:
            books = [closed.get((row["step"], row["target"]), row) for row in self._ledger]
            tables["ledger"] = as_tensor(pa.Table.from_pylist(books, schema=LEDGER))
        return {
            "store": None if self._folder is None else self._folder.position(),
            "settled": [step for step, _ in owed] if self._folder is not None else [],
            "residual": self._residual,
            "size": self._size,
            "unknown": self._unknown,
            "latest": self.latest,
        }, tables

    def restore(self, header: Mapping[str, Any], tables: Mapping[str, Tensor]) -> None:
        """Goes back to what `state` gave."""
        stored_elsewhere = not self._first and self._folder is None
        if (header["store"] is None) != (self._folder is None) and not stored_elsewhere:
            there = "without a store" if header["store"] is None else "with a store"
            raise MisuseError(
                f"The state was taken {there}. Attach the same way, with store=... and "
                "resume=True where there was one."
            )
        if self._folder is not None:
            self._folder.go_to(header["store"])
            for step in header.get("settled", ()):
                visits, values, paid, rows = (tables[f"{step}/{part}"] for part in CLOSED)
                sizes = tables.get(f"{step}/sizes")
                self._folder.add(
                    step, as_table(visits)["sample_id"].to_pylist(), (values + paid).numpy(),
                    as_table(rows).to_pylist(), paid_BK=paid.numpy(),
                    sizes=None if sizes is None else sizes.numpy(),
                )  # fmt: skip
            self._folder.flush()
        elif "ledger" in tables:
            self._ledger = in_present_columns(as_table(tables["ledger"])).to_pylist()
        self._running_totals.restore(as_table(tables["values"]))
        self._residual, self._size = float(header["residual"]), float(header["size"])
        self._unknown = bool(header.get("unknown"))
        self.latest = dict(header["latest"])

    def stored_books(self) -> list[dict[str, object]] | None:
        """The store's books so far; None in a process that has no store."""
        if self._folder is None:
            return None
        books: list[dict[str, object]] = Run(self._folder.path).books().to_pylist()
        return books

    def take_books(self, books: list[dict[str, object]] | None) -> None:
        """Takes over the first process's books, in one that has no store of its own."""
        if self._folder is None and books is not None:
            self._ledger = books

    def _stored(self, coverage: pa.Table) -> RunFolder:
        """The store, with everything that the disk takes written to it."""
        assert self._folder is not None
        with suppress(StoreError):  # what cannot be written is read from memory; the loop was told
            self._folder.flush(coverage)
        return self._folder


def _settled(step: int, waiting: _Waiting, paid_NK: np.ndarray) -> dict[str, Tensor]:
    """A step that waits, as the store gets it where a run goes on from the state."""
    parts = (
        as_tensor(pa.table({"sample_id": waiting.ids})), torch.from_numpy(waiting.values.copy()),
        torch.from_numpy(paid_NK.copy()),
        as_tensor(pa.Table.from_pylist(waiting.rows, schema=LEDGER)),
    )  # fmt: skip
    found = {f"{step}/{name}": part for name, part in zip(CLOSED, parts, strict=True)}
    if waiting.sizes is not None:
        found[f"{step}/sizes"] = torch.from_numpy(waiting.sizes.copy())
    return found
