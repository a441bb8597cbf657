"""A stored run, read back: the same tables that the live attribution gives."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import InRunWarning, MisuseError, StoreError
from inrun.ledger._books import LEDGER, TOTAL, balance, in_present_columns
from inrun.ledger._files import PartId, is_there, read_table, store_path, write_table
from inrun.ledger._manifest import KINDS, has_digest, read_manifest
from inrun.ledger._parts import listed, require_columns, require_whole, whole
from inrun.ledger._running_totals import (
    Extra,
    RunningTotals,
    stored_visits,
    values_schema,
    visits_schema,
)
from inrun.ledger._samples import FILES, samples_table
from inrun.utility import HALF


def load_run(path: str | os.PathLike[str], *, incomplete: bool = False) -> Run:
    """Opens a run's folder, every file in it checked; see `inrun.load`."""
    place = store_path(path, "path")
    manifest = read_manifest(place)
    parts, faults = {}, []
    for kind in KINDS:
        parts[kind], fault = whole(place, manifest, kind)
        if fault is not None and not incomplete:
            raise fault
        faults.append(fault)
    faults.append(require_whole(place, manifest, SINGLE, incomplete=incomplete))
    for fault in filter(None, faults):
        warnings.warn(f"Only what comes before it is read: {fault}", InRunWarning, stacklevel=3)
    run = Run(place, parts)
    for note in run.notes:
        warnings.warn(note, InRunWarning, stacklevel=3)
    return run


class Run:
    """A run's folder. Tables are computed when they are asked for, each file checked as it is read.

    Args:
        path: the folder.
        parts: by kind, those to read; all that are there where not given.

    Raises:
        StoreError: no run is there, or a part is missing.
    """

    def __init__(self, path: Path, parts: dict[str, list[Path]] | None = None):
        self.path = path
        self.manifest = read_manifest(path)
        if parts is None:
            parts = {kind: listed(path, self.manifest, kind) for kind in KINDS}
        self.parts = parts

    def __repr__(self) -> str:
        targets = ", ".join(self.targets)
        return f"Run({str(self.path)!r}, estimator={self.estimator!r}, targets: {targets})"

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know about how far the files can be relied on."""
        if has_digest(self.manifest, "visits"):
            return ()
        return (
            f"{self.path} was written by an earlier version: its files carry no checksums, so one "
            "that was changed since is not noticed.",
        )

    @property
    def estimator(self) -> str:
        """The method that the values were computed with."""
        return str(self.manifest["estimator"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the utility's targets, `HALF` left out."""
        return tuple(name for name in self._columns if name != HALF)

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(self.manifest["targets"])

    @property
    def weights(self) -> dict[str, float]:
        """What each target counts in the total; they add up to 1. Older runs' count equally."""
        given = self.manifest.get("weights") or [1 / len(self._columns)] * len(self._columns)
        weights = dict(zip(self._columns, map(float, given), strict=True))
        return {name: weights[name] for name in self.targets}

    def judged_by(self, weights: Mapping[str, float]) -> Run:
        """The same run, its total judged by other weights of the targets: exact, from its files.

        Args:
            weights: of every target, at least 0; they are scaled to add up to 1.

        Raises:
            MisuseError: weights that do not fit the targets, or a run with one target.
        """
        from inrun.ledger._judged import judged  # which is made of runs

        return judged(self, weights)

    @property
    def extra(self) -> Extra:
        """'standard_error' of values where only some steps were scored, 'paid_out', or None."""
        found: Extra = self.manifest.get("extra")
        return found

    @property
    def sized(self) -> bool:
        """Whether visits have their sample's `gradient_size`."""
        return bool(self.manifest.get("sized"))

    def values(self) -> pa.Table:
        """One row per sample: see `Attribution.values`.

        Visits are added up in the order in which they were stored, one part at a time: the sums are
        bit for bit those of the live run, and memory grows with samples, not with visits.
        """
        running_totals = RunningTotals(self._columns, [1.0] * len(self._columns), self.extra)
        for part in self._visits():
            running_totals.fold(stored_visits(part))
        return running_totals.table().cast(values_schema(self._id_type, self._columns, self.extra))

    def visits(self) -> pa.Table:
        """One row per visit: step, sample_id, value, value_normalised, and one column per target.

        Where only some steps were scored, also `weight`: how many steps the visit's step stands
        for, and what its values are multiplied by. Where momentum is paid out, `paid_out`: how much
        of the value that is. With `Options(gradient_sizes=True)`, `gradient_size`: the norm of the
        sample's own part of the gradient in that step, as the optimizer consumed it.
        """
        if not self.parts["visits"]:
            raise StoreError(f"{self.path} holds no visits yet.")
        return pa.concat_tables(self._visits())

    def _visits(self) -> Iterator[pa.Table]:
        schema = visits_schema(self._id_type, self._columns, self.extra, sized=self.sized)
        for part, table in self._read_parts("visits"):
            visits = require_columns(part, table, schema)
            yield visits.filter(pc.is_finite(visits["value"]))  # see NOT_FINITE

    @property
    def _id_type(self) -> pa.DataType:
        return pa.string() if self.id_type == "string" else pa.int64()

    def _read_parts(self, kind: str) -> Iterator[tuple[Path, pa.Table]]:
        for number, part in enumerate(self.parts[kind]):
            digested = has_digest(self.manifest, kind, number)
            yield part, read_table(part, self._part_id(kind, number), digested=digested)

    def _part_id(self, kind: str, number: int = 0) -> PartId:
        return PartId(kind, self.manifest.get("run", ""), number)

    def ledger(self, target: str = TOTAL) -> pa.Table:
        """One row per step: see `Attribution.ledger`."""
        return books_of(self.books(), target)

    def balance(self, target: str = TOTAL) -> dict[str, float]:
        """The ledger in one row: see `Attribution.balance`.

        With payout a step is stored when it was paid, so that nothing is still in the momentum;
        of a run that goes on or was killed the last steps are missing.
        """
        return balance(self.ledger(target))

    def books(self) -> pa.Table:
        """The ledgers of all targets and of their total, one row per step and target."""
        return books_of_parts(
            require_columns(part, in_present_columns(table), LEDGER)
            for part, table in self._read_parts("ledger")
        )

    def coverage(self) -> pa.Table:
        """One row per parameter: see `Attribution.coverage`."""
        found = self._single("coverage")
        if found is None:
            raise StoreError(
                f"{self.path / SINGLE['coverage']} is missing: the run was not flushed to its end."
            )
        return found

    def _single(self, kind: str) -> pa.Table | None:
        """The table of a kind that has one file, or None where it is not there."""
        path = self.path / SINGLE[kind]
        if not is_there(path):
            return None
        return read_table(path, self._part_id(kind), digested=has_digest(self.manifest, kind))

    @property
    def id_type(self) -> str | None:
        """'int64' or 'string'; None before the first visit."""
        found: str | None = self.manifest.get("id_type")
        return found

    def explain(self, step: int | None = None, **stretch: Any) -> Any:
        """Why the validation loss rose or fell in a step: see `inrun.explain`."""
        return importlib.import_module("inrun").explain(self, step, **stretch)  # of a room above

    def describe(self, samples: Any, validation: Any = None) -> None:
        """Says what the samples are, for reports and decisions: kept beside the values.

        Args:
            samples: one row per sample: a pyarrow table, a data frame, a mapping of columns or a
                list of mappings, with `sample_id` and any of `text`, `image` (PIL, arrays or
                files), `label`, `source`, and other columns of plain values. Rows of a data set of
                `datasets` without `sample_id` are known by their positions.
            validation: the same of the validation rows, if they are to be shown.

        Raises:
            MisuseError: no ids, ids twice or of another kind, or an image that is not one.
            StoreError: it cannot be written.

        Example:
            `inrun.load("run").describe({"sample_id": [0, 1], "text": ["good", "bad"]})`
        """
        tables = {"training": samples_table(samples, self.id_type)}
        if validation is not None:
            tables["validation"] = samples_table(validation, None)
        for split, table in tables.items():
            self.write_samples(table, split)

    def samples(self, split: str = "training") -> pa.Table | None:
        """What `describe` was told, or None; split 'training' or 'validation'."""
        return self._single(split)

    def write_samples(self, table: pa.Table, split: str = "training") -> None:
        """Keeps a table of samples as it is, in place of the earlier one.

        Raises:
            StoreError: it cannot be written.
        """
        write_table(self.path / FILES[split], table, self._part_id(split))

    def audit(self) -> pa.Table:
        """One row per checked step: see `inrun.truth.AUDIT`.

        Raises:
            StoreError: the run was not audited.
        """
        found = self._single("audit")
        if found is None:
            raise StoreError(
                f"{self.path} was not audited: there is nothing to compare its values with. Call "
                "attribution.audit(seconds=60, steps=number_of_steps) before the training loop."
            )
        return found


SINGLE = {"coverage": "coverage.parquet", "audit": "audit.parquet", **FILES}
"""Kinds that have one file each."""


def books_of(ledger: pa.Table, target: str) -> pa.Table:
    """The rows of one target, without the column that names it.

    Raises:
        MisuseError: no such target was booked.
    """
    rows = ledger.filter(pc.equal(ledger["target"], target))
    if ledger.num_rows and not rows.num_rows:
        known = sorted(set(ledger["target"].to_pylist()))
        raise MisuseError(f"No books are kept for target {target!r}; there are {known}.")
    return rows.drop_columns(["target"])


def books_of_parts(parts: Iterator[pa.Table] | Sequence[pa.Table]) -> pa.Table:
    """The ledger of several parts, in their order."""
    return pa.concat_tables([LEDGER.empty_table(), *parts])
