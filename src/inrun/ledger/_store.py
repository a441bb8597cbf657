"""A run on disk: a folder of Parquet parts that grows as training goes.

    run.json                 what the run is: format, estimator, targets, weights, id type
    visits/000000.parquet    step, sample_id, value, value_normalised, one column a target; where
                             only some steps were scored, `weight`: how many this one stands for;
                             where momentum is paid out, `paid_out`: how much of the value that is
    ledger/000000.parquet    the books, see `inrun.ledger.LEDGER`
    coverage.parquet         how each parameter was captured, at the run's last flush
    discarded/               parts after the checkpoint that a run was resumed from, if it was
    audit.parquet            the audit's checks so far, where there is one: `inrun.truth.AUDIT`
    samples.parquet          what the samples are, where `Run.describe` was told: `_samples.py`

A part is written beside its place, synchronized and renamed: it is there whole or not at all. What
a killed process loses is the block that was not flushed yet: 16,384 visits or half a minute. Any
Parquet reader reads the parts:
`select * from 'RUN/visits/*.parquet'`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import StoreError
from inrun.ledger._books import LEDGER
from inrun.ledger._files import replace_file, write_table
from inrun.ledger._manifest import FORMAT, MANIFEST, read_manifest
from inrun.ledger._position import KINDS, chained, demand, part_name, position, set_aside
from inrun.ledger._tally import Extra, Ids, normalised, target_columns

FLUSH_SECONDS = 30.0


class RunFolder:
    """Writes one run.

    Args:
        path: the folder.
        estimator: the method's name.
        targets: the utility's.
        weights: of the targets.
        block_visits: how many visits a part holds at least, unless time passes.
        resume: the folder may hold a run that is to be continued: from a position that is loaded,
            or else from the start.
        extra: the column that this kind of run has besides.

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
        block_visits: int = 16384,
        resume: bool = False,
        extra: Extra = None,
    ):
        self.path = Path(path)
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "run": uuid.uuid4().hex,
            "estimator": estimator,
            "targets": list(targets),
            "weights": list(weights),
            "id_type": None,
            "extra": extra,
            "sign": "positive values lowered the validation loss",
            "unit": "validation loss",
        }
        self._columns, self._extra = target_columns(targets), extra
        self._weights = np.asarray(weights)
        self._block_visits = block_visits
        self._visits: list[pa.RecordBatch] = []
        self._waiting = 0
        self._ledger: list[dict[str, object]] = []
        self._parts, self._digests = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, "")
        self._resumes = False
        self._flushed = time.monotonic()
        if (self.path / MANIFEST).exists() or any((self.path / "visits").glob("*.parquet")):
            if not resume:
                raise StoreError(
                    f"{self.path} holds a run already. Writing into it would count its visits "
                    "twice. Name a new folder or remove the old one first; to go on with it from a "
                    "checkpoint, attach with resume=True and load_state_dict."
                )
            self._take_over(read_manifest(self.path))

    def create(self) -> None:
        """Makes the folder and says in it what the run is.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            for folder in self._parts:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            self._write_manifest()
        except OSError as error:
            raise StoreError(f"The run cannot be stored in {self.path}: {error}") from error

    def _take_over(self, manifest: dict[str, Any]) -> None:
        for name in ("estimator", "targets", "weights", "extra"):
            if manifest.get(name) != self._manifest[name]:
                raise StoreError(
                    f"{self.path} holds a run with {name} {manifest.get(name)!r}, and this one has "
                    f"{self._manifest[name]!r}: it cannot be continued so. Attach as before."
                )
        self._manifest |= {"run": manifest["run"], "id_type": manifest["id_type"]}
        self._resumes = True

    def position(self) -> dict[str, Any]:
        """How far the run has come, everything written: see `inrun.ledger._position`."""
        self._begin()
        self.flush()
        return position(self._manifest["run"], self._parts, self._digests)

    def go_to(self, where: Mapping[str, Any]) -> None:
        """Takes the run back to a position.

        Raises:
            StoreError: this is not that run, or a part of it is missing or was changed.
        """
        demand(self.path, self._manifest["run"], where)
        self._visits, self._waiting, self._ledger = [], 0, []
        self._parts, self._digests = dict(where["parts"]), dict(where["digests"])
        self._begin()

    def _begin(self) -> None:
        """Before the first writing: what a resumed run holds after its position is set aside."""
        if self._resumes:
            self._resumes = False
            if not any(self._parts.values()):
                self._manifest["id_type"] = None
            set_aside(self.path, self._parts)

    def _write_manifest(self) -> None:
        text = json.dumps(self._manifest, indent=2) + "\n"
        replace_file(self.path / MANIFEST, lambda f: f.write(text.encode()))

    def add(
        self,
        step: int,
        ids: Ids,
        values_BK: np.ndarray,
        rows: list[dict[str, object]],
        weight: float = 1.0,
        paid_BK: np.ndarray | None = None,
    ) -> None:
        """Adds one step: its visits and its rows of the books.

        Args:
            step: its number.
            ids: of its visits.
            values_BK: theirs, everything in them.
            rows: of the books.
            weight: how many steps it stands for.
            paid_BK: how much of the values momentum paid out.
        """
        self._begin()
        if ids and self._manifest["id_type"] is None:
            self._manifest["id_type"] = "string" if isinstance(ids[0], str) else "int64"
            self._write_manifest()
        if ids:
            total = values_BK @ self._weights
            columns: dict[str, Any] = {
                "step": pa.array(np.full(len(ids), step, dtype=np.int64)),
                "sample_id": pa.array(ids),
                "value": pa.array(weight * total),
                "value_normalised": pa.array(weight * normalised(total)),
            }
            columns |= {
                name: pa.array(weight * values_BK[:, k]) for k, name in enumerate(self._columns)
            }
            if self._extra == "standard_error":
                columns["weight"] = pa.array(np.full(len(ids), weight))
            if self._extra == "paid_out":
                paid = 0 * total if paid_BK is None else paid_BK @ self._weights
                columns["paid_out"] = pa.array(paid)
            self._visits.append(pa.RecordBatch.from_pydict(columns))
            self._waiting += len(ids)
        self._ledger += rows
        full = max(self._waiting, len(self._ledger)) >= self._block_visits
        if full or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, coverage: pa.Table | None = None) -> None:
        """Writes what is waiting as new parts."""
        self._flushed = time.monotonic()
        if self._visits:
            self._write_part("visits", pa.Table.from_batches(self._visits))
            self._visits, self._waiting = [], 0
        if self._ledger:
            self._write_part("ledger", pa.Table.from_pylist(self._ledger, schema=LEDGER))
            self._ledger = []
        if coverage is not None:
            write_table(self.path / "coverage.parquet", coverage)

    def write_audit(self, checks: pa.Table) -> None:
        """Writes an audit's checks so far, in place of the earlier ones."""
        write_table(self.path / "audit.parquet", checks)

    def _write_part(self, kind: str, table: pa.Table) -> None:
        number = self._parts[kind]
        part = self.path / kind / part_name(number)
        write_table(part, table)
        self._digests[kind] = chained(self._digests[kind], part)
        self._parts[kind] = number + 1
