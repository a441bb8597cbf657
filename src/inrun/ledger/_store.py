"""A run on disk: a folder of Parquet parts that grows as training goes.

    run.json                 what the run is: format, estimator, targets, weights, id type
    visits/000000.parquet    step, sample_id, value, value_normalised, one column per target; where
                             only some steps were scored, `weight`: how many this one stands for;
                             where momentum is paid out, `paid_out`: how much of the value that
                             is; where it was asked for, `gradient_size`
    ledger/000000.parquet    the ledger, see `inrun.ledger.LEDGER`
    coverage.parquet         how each parameter was captured, at the run's last flush
    tokens/000000.parquet    values per token, where they are kept: `_tokens.py`
    run.lock                 while a process writes: which one, on which machine
    discarded/               parts after the checkpoint that a run was resumed from, if it was
    audit.parquet            the audit's checks so far, where there is one: `inrun.truth.AUDIT`
    samples.parquet          what the samples are, where `Run.describe` was told: `_samples.py`

A part is written beside its place, synchronized and renamed: it is there whole or not at all, and
carries the run's id, its number and a checksum (`_files.py`). What a killed process loses is the
block that was not flushed yet: 16,384 visits or half a minute. Any Parquet reader reads the parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger._books import LEDGER
from inrun.ledger._files import PartId, is_there, store_path, write_table
from inrun.ledger._lock import Lock
from inrun.ledger._manifest import KINDS, MANIFEST, TOKENS, continued, new_manifest, write_manifest
from inrun.ledger._parts import chain, part_name, require_position, set_aside
from inrun.ledger._run import Run, books_of_parts
from inrun.ledger._running_totals import Extra, Ids, Visits, visits_of_step, visits_schema
from inrun.ledger._tokens import TokenFolder

FLUSH_VISITS, FLUSH_SECONDS = 16384, 30.0  # a part is written after so many, or so long


class RunFolder:
    """Writes one run.

    Args:
        path: the folder.
        estimator: the method's name.
        targets: the utility's.
        weights: of the targets.
        resume: the folder may hold a run that is to be continued: from a position that is loaded,
            or else from the start.
        extra: the column that this kind of run has besides.
        sized: whether visits have the size of their sample's own gradient.

    Raises:
        StoreError: the folder holds a run already and is not resumed, or that run is another kind
            of run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        estimator: str,
        targets: Sequence[str],
        weights: Sequence[float],
        resume: bool = False,
        extra: Extra = None,
        sized: bool = False,
    ):
        self.path = store_path(path)
        self._manifest = new_manifest(
            estimator=estimator, targets=list(targets), weights=list(weights), extra=extra,
            sized=sized,
        )  # fmt: skip
        self._targets, self._extra, self._sized = tuple(targets), extra, sized
        self._weights = np.asarray(weights)
        self._block_visits, self._resume = FLUSH_VISITS, resume
        self._visits: list[Visits] = []
        self._waiting = 0
        self._ledger: list[dict[str, object]] = []
        self._parts, self._digests = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, "")
        self._token_parts = 0
        self._resumes = False
        self._lock: Lock | None = None
        self._ending, self._said_id_type = False, None
        self._flushed = time.monotonic()
        self._look()

    def _look(self) -> None:
        """Takes over what the folder holds, if that was said."""
        try:
            holds = is_there(self.path / MANIFEST) or any((self.path / "visits").glob("*.parquet"))
        except OSError as error:
            raise StoreError(f"{self.path} cannot be looked into ({error}).") from error
        if not holds:
            return
        if not self._resume:
            raise StoreError(
                f"{self.path} holds a run already. Writing into it would count its visits "
                "twice. Name a new folder or remove the old one first; to go on with it from a "
                "checkpoint, attach with resume=True and load_state_dict."
            )
        self._manifest = continued(self.path, self._manifest)
        self._token_parts = int(self._manifest["parts"].get(TOKENS, 0))
        self._resumes = True

    def create(self) -> None:
        """Makes the folder, locks it and says in it what the run is.

        Raises:
            StoreError: it cannot be written, or another process writes it.
        """
        try:
            for folder in KINDS:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise StoreError(f"The run cannot be stored in {self.path}: {error}") from error
        self._lock = Lock(self.path)
        try:
            self._look()  # again: whoever held the lock may have gone on since
            if not self._resumes:
                write_manifest(self.path, self._manifest)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Lets other processes write into the folder, as soon as nothing waits to be written."""
        self._ending = True
        if self._lock is not None and (self.superseded or not (self._visits or self._ledger)):
            self._lock.release()

    @property
    def superseded(self) -> bool:
        """Whether somebody else goes on with the run, so that nothing more is written here."""
        return self._lock is not None and not self._ending and not self._lock.is_held()

    @property
    def run(self) -> str:
        """The run's id."""
        return str(self._manifest["run"])

    def position(self) -> dict[str, Any]:
        """How far the run has come, everything written: see `inrun.ledger._parts`."""
        self._begin()
        self.flush()
        return {"run": self.run, "parts": dict(self._parts), "digests": dict(self._digests)}

    def go_to(self, where: Mapping[str, Any]) -> None:
        """Takes the run back to a position.

        Raises:
            StoreError: this is not that run, or a part of it is missing or was changed.
        """
        require_position(self.path, self._manifest["run"], where)
        self._visits, self._waiting, self._ledger = [], 0, []
        self._parts, self._digests = dict(where["parts"]), dict(where["digests"])
        self._resumes = True
        self._begin()

    def _begin(self) -> None:
        """Before the first writing: what a resumed run holds after its position is set aside."""
        if not self._resumes:
            return
        self._require_lock()
        if not any(self._parts.values()):
            self._manifest["id_type"] = None
            self._token_parts = 0
        if "unsealed" in self._manifest:
            older = self._manifest["unsealed"]
            left = {kind: min(older[kind], self._parts[kind]) for kind in KINDS}
            self._manifest["unsealed"] = {**older, **left}
        self._commit()  # first: the folder never says that it has more than it has
        set_aside(self.path, self._parts)
        if not self._token_parts and (self.path / TOKENS).is_dir():
            TokenFolder(self.path).restore({"parts": 0})
        self._resumes = False

    def _commit(self) -> None:
        """Says in the folder which parts it has."""
        self._manifest |= {"parts": self._counted, "digests": dict(self._digests)}
        self._said_id_type = self._manifest["id_type"]
        write_manifest(self.path, self._manifest)

    @property
    def _counted(self) -> dict[str, int]:
        """Parts by kind."""
        return self._parts | ({TOKENS: self._token_parts} if self._token_parts else {})

    def tokens(self) -> TokenFolder:
        """Where the run's values per token go."""

        def count(parts: int) -> None:
            lock = self._lock
            if self._ending:  # the last ones are written when all else was
                lock = Lock(self.path)
            elif lock is not None:
                lock.demand()
            self._token_parts = parts
            if not self._resumes:
                self._commit()
            if self._ending and lock is not None:
                lock.release()

        return TokenFolder(self.path, count)

    def _require_lock(self) -> None:
        if self._lock is not None:
            self._lock.demand()

    def add(
        self,
        step: int,
        ids: Ids,
        values_BK: np.ndarray,
        rows: list[dict[str, object]],
        weight: float = 1.0,
        paid_BK: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
    ) -> None:
        """Adds one step: its visits and its rows of the ledger; see `visits_of_step`."""
        self._begin()
        if ids and self._manifest["id_type"] is None:
            self._manifest["id_type"] = "string" if isinstance(ids[0], str) else "int64"
        if ids:
            visits = visits_of_step(
                step, ids, values_BK, self._weights,
                extra=self._extra, weight=weight, paid_BK=paid_BK, sizes=sizes,
            )  # fmt: skip
            self._visits.append(visits)
            self._waiting += len(ids)
        self._ledger += rows
        full = max(self._waiting, len(self._ledger)) >= self._block_visits
        if full or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, coverage: pa.Table | None = None) -> None:
        """Writes what is waiting as new parts.

        Raises:
            StoreError: the disk refused, or another process has taken the folder over.
        """
        self._flushed = time.monotonic()
        if self._ending and not (self._visits or self._ledger):
            return
        self._require_lock()
        if self._visits:
            if self._said_id_type != self._manifest["id_type"]:
                self._commit()  # first: it says how a part's ids are read
            self._write_part("visits", self._waiting_visits())
            self._visits, self._waiting = [], 0
        if self._ledger:
            self._write_part("ledger", pa.Table.from_pylist(self._ledger, schema=LEDGER))
            self._ledger = []
        if not self._resumes and self._manifest["parts"] != self._counted:
            self._commit()
        if coverage is not None:
            write_table(self.path / "coverage.parquet", coverage, PartId("coverage", self.run))
        if self._ending:
            self.close()

    def books(self) -> pa.Table:
        """The whole ledger so far, also those that the disk did not take."""
        stored = Run(self.path).books()
        return books_of_parts([stored, pa.Table.from_pylist(self._ledger, schema=LEDGER)])

    def visits(self) -> pa.Table:
        """All visits so far, also those that the disk did not take."""
        if not self._visits:
            return Run(self.path).visits()
        stored = [Run(self.path).visits()] if any(self._parts.values()) else []
        return pa.concat_tables([*stored, self._waiting_visits()])

    def _waiting_visits(self) -> pa.Table:
        id_type = pa.string() if self._manifest["id_type"] == "string" else pa.int64()
        schema = visits_schema(id_type, self._targets, self._extra, sized=self._sized)
        return pa.concat_tables([visits.table(schema) for visits in self._visits])

    def write_audit(self, checks: pa.Table) -> None:
        """Writes an audit's checks so far, in place of the earlier ones."""
        self._require_lock()
        write_table(self.path / "audit.parquet", checks, PartId("audit", self.run))

    def _write_part(self, kind: str, table: pa.Table) -> None:
        number = self._parts[kind]
        part = self.path / kind / part_name(number)
        write_table(part, table, PartId(kind, self.run, number))
        self._digests[kind] = chain(self._digests[kind], part)
        self._parts[kind] = number + 1
