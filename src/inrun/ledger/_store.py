"""A run on disk: a folder of Parquet parts that grows as training goes.

    run.json                 what the run is: format, estimator, targets, weights, id type
    visits/000000.parquet    step, sample_id, value, value_normalised, one column a target
    ledger/000000.parquet    the books, see `inrun.ledger.LEDGER`
    coverage.parquet         how each parameter was captured, at the run's last flush
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inrun.errors import StoreError
from inrun.ledger._books import LEDGER
from inrun.ledger._tally import Ids, normalised, target_columns

FORMAT = 1
FLUSH_SECONDS = 30.0
MANIFEST = "run.json"


class RunFolder:
    """Writes one run.

    Raises:
        StoreError: the folder holds a run already.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        estimator: str,
        targets: Sequence[str],
        weights: Sequence[float],
        block_visits: int = 16384,
    ):
        self.path = Path(path)
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "estimator": estimator,
            "targets": list(targets),
            "weights": list(weights),
            "id_type": None,
            "sign": "positive values lowered the validation loss",
            "unit": "validation loss",
        }
        self._columns = target_columns(targets)
        self._weights = np.asarray(weights)
        self._block_visits = block_visits
        self._visits: list[pa.RecordBatch] = []
        self._waiting = 0
        self._ledger: list[dict[str, object]] = []
        self._parts = {"visits": 0, "ledger": 0}
        self._flushed = time.monotonic()
        if (self.path / MANIFEST).exists() or any((self.path / "visits").glob("*.parquet")):
            raise StoreError(
                f"{self.path} holds a run already. Writing into it would count its visits twice. "
                "Name a new folder, or remove the old one first."
            )

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

    def _write_manifest(self) -> None:
        text = json.dumps(self._manifest, indent=2) + "\n"
        _replace_file(self.path / MANIFEST, lambda f: f.write(text.encode()))

    def add(
        self, step: int, ids: Ids, values_BK: np.ndarray, rows: list[dict[str, object]]
    ) -> None:
        """Adds one step: its visits and its rows of the books."""
        if ids and self._manifest["id_type"] is None:
            self._manifest["id_type"] = "string" if isinstance(ids[0], str) else "int64"
            self._write_manifest()
        if ids:
            total = values_BK @ self._weights
            columns: dict[str, Any] = {
                "step": pa.array(np.full(len(ids), step, dtype=np.int64)),
                "sample_id": pa.array(ids),
                "value": pa.array(total),
                "value_normalised": pa.array(normalised(total)),
            }
            columns |= {name: pa.array(values_BK[:, k]) for k, name in enumerate(self._columns)}
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
        write_table(self.path / kind / f"{number:06d}.parquet", table)
        self._parts[kind] = number + 1


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table in one piece, see `_replace_file`."""
    _replace_file(path, lambda f: pq.write_table(table, f, compression="zstd"))


def _replace_file(path: Path, write: Any) -> None:
    """Writes beside, synchronizes, renames: never a half file under the final name.

    Raises:
        StoreError: the disk refused; what was written before stays readable.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(
            f"{path} could not be written ({error}). Parts written before are whole and readable."
        ) from error
