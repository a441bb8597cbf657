"""A stored run, read back: the same tables that the live attribution gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inrun.errors import MisuseError, StoreError
from inrun.ledger._books import LEDGER, TOTAL, balance
from inrun.ledger._files import write_table
from inrun.ledger._manifest import read_manifest
from inrun.ledger._samples import FILES, samples_table
from inrun.ledger._tally import Extra, target_columns, values_schema


def load(path: str | os.PathLike[str]) -> Run:
    """Opens a run's folder.

    Raises:
        StoreError: no run is there, a part is missing, torn or of another run; it is named.
    """
    return Run(Path(path))


class Run:
    """A run's folder, checked on opening. Tables are computed when they are asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = read_manifest(path)
        self._parts = {kind: _checked_parts(path / kind) for kind in ("visits", "ledger")}

    def __repr__(self) -> str:
        targets = ", ".join(self.targets)
        return f"Run({str(self.path)!r}, estimator={self.estimator!r}, targets: {targets})"

    @property
    def estimator(self) -> str:
        """The method that the values were computed with."""
        return str(self.manifest["estimator"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the utility's targets."""
        return tuple(self.manifest["targets"])

    @property
    def extra(self) -> Extra:
        """'standard_error' of values where only some steps were scored, 'paid_out', or None."""
        found: Extra = self.manifest.get("extra")
        return found

    def values(self) -> pa.Table:
        """A row a sample: see `Attribution.values`. Summed by duckdb, also beyond memory."""
        id_type = pa.string() if self.manifest["id_type"] == "string" else pa.int64()
        schema = values_schema(id_type, self.targets, self.extra)
        if not self._parts["visits"]:
            return schema.empty_table()
        named = "".join(
            f", sum({_quoted(t)}) as {_quoted(t)}" for t in target_columns(self.targets)
        )
        extra = {
            None: "",
            "paid_out": ", sum(paid_out) as paid_out",
            "standard_error": ", sqrt(sum((1 - 1 / weight) * value * together)) as standard_error",
        }[self.extra]
        visits = (  # an id's rows of one step are drawn together
            "(select *, sum(value) over (partition by sample_id, step) as together "
            "from read_parquet($parts))"
        )
        query = (
            "select sample_id, sum(value) as value, sum(value_normalised) as value_normalised, "
            "count(*) as visits, min(step) as first_step, max(step) as last_step"
            f"{extra}{named} from {visits} group by sample_id order by sample_id"
        )
        table = _to_arrow(query, {"parts": [str(p) for p in self._parts["visits"]]})
        return table.cast(schema)

    def visits(self) -> pa.Table:
        """A row a visit: step, sample_id, value, value_normalised, and one column a target.

        Where only some steps were scored, also `weight`: how many steps the visit's step stands
        for, and what its values are multiplied by. Where momentum is paid out, `paid_out`: how much
        of the value that is.
        """
        if not self._parts["visits"]:
            raise StoreError(f"{self.path} holds no visits yet.")
        return pa.concat_tables([pq.read_table(part) for part in self._parts["visits"]])

    def ledger(self, target: str = TOTAL) -> pa.Table:
        """A row a step: see `Attribution.ledger`."""
        return books_of(self.books(), target)

    def balance(self, target: str = TOTAL) -> dict[str, float]:
        """The books in one row: see `Attribution.balance`.

        With payout a step is stored when it was paid, so that nothing is still in the momentum;
        of a run that goes on or was killed the last steps are missing.
        """
        return balance(self.ledger(target))

    def books(self) -> pa.Table:
        """The ledgers of all targets and of their total, a row a step and target."""
        parts = [pq.read_table(part) for part in self._parts["ledger"]]
        for path, part in zip(self._parts["ledger"], parts, strict=True):
            if not part.schema.equals(LEDGER):
                strange = sorted(set(part.column_names) ^ set(LEDGER.names))
                raise StoreError(
                    f"{path} does not have the columns that this version reads ({strange} differ): "
                    "another version wrote it. Read it with that one, or with any Parquet reader."
                )
        return pa.concat_tables([LEDGER.empty_table(), *parts])

    def coverage(self) -> pa.Table:
        """A row a parameter: see `Attribution.coverage`."""
        path = self.path / "coverage.parquet"
        if not path.exists():
            raise StoreError(f"{path} is missing: the run was not flushed to its end.")
        return _read(path)

    @property
    def id_type(self) -> str | None:
        """'int64' or 'string'; None before the first visit."""
        found: str | None = self.manifest["id_type"]
        return found

    def describe(self, samples: Any, validation: Any = None) -> None:
        """Says what the samples are, for reports and decisions: kept beside the values.

        Args:
            samples: one row a sample: a pyarrow table, a data frame, a mapping of columns or a list
                of mappings, with `sample_id` and any of `text`, `image` (PIL, arrays or files),
                `label`, `source`, and other columns of plain values.
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
            write_table(self.path / FILES[split], table)

    def samples(self, split: str = "training") -> pa.Table | None:
        """What `describe` was told, or None; split 'training' or 'validation'."""
        path = self.path / FILES[split]
        return _read(path) if path.exists() else None

    def audit(self) -> pa.Table:
        """A row a checked step: see `inrun.truth.AUDIT`.

        Raises:
            StoreError: the run was not audited.
        """
        path = self.path / "audit.parquet"
        if not path.exists():
            raise StoreError(
                f"{self.path} was not audited: there is nothing to compare its values with. Call "
                "attribution.audit(seconds=60, steps=number_of_steps) before the training loop."
            )
        return _read(path)


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


def _checked_parts(folder: Path) -> list[Path]:
    """The parts in their order; each one's footer is read, so that a torn one is found now."""
    parts = sorted(folder.glob("*.parquet"))
    for number, part in enumerate(parts):
        if part.name != f"{number:06d}.parquet":
            raise StoreError(f"{folder / f'{number:06d}.parquet'} is missing: the run has a gap.")
        try:
            pq.read_metadata(part)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{part} is torn or not a Parquet file ({error}). The other parts are whole: move "
                "it and the later ones away to read what came before."
            ) from error
    return parts


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is torn or not a Parquet file ({error}).") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _to_arrow(query: str, parameters: dict[str, Any]) -> pa.Table:
    import duckdb  # takes long to import, and only reading a stored run needs it

    with duckdb.connect() as connection:
        return connection.sql(query, params=parameters).to_arrow_table()
