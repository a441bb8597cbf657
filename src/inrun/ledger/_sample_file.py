"""Samples read from a user's file: Parquet, CSV, JSON Lines. A bad row is named by its line."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from inrun.errors import InRunWarning, MisuseError
from inrun.ledger._samples import ID, ROW, Pictures, plain_column, samples_table


def read_samples(
    path: str | os.PathLike[str],
    *,
    id_column: str = ID,
    id_type: str | None = None,
    text_column: str | None = None,
    pictures: Path | None = None,
) -> pa.Table:
    """A file's rows as a table of samples.

    Args:
        path: .parquet, .csv, .tsv, .jsonl or .ndjson.
        id_column: the column that holds the run's ids; ':row' for the row's number, from 0.
        id_type: 'int64' or 'string', the run's.
        text_column: the column to show as the sample's text, if it is not called `text`.
        pictures: the folder in which files that the column `image` names must lie, and from which
            relative names begin; the file's own where not given. Pictures that lie elsewhere or
            are damaged are left out with an `InRunWarning`.

    Raises:
        MisuseError: no such file, form or column, or a row that cannot be read, named by its line.
    """
    place = Path(path)
    if not place.is_file():
        raise MisuseError(f"There is no file {place} to read samples from.")
    readers = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _lines,
        ".ndjson": _lines,
    }
    if place.suffix.lower() not in readers:
        raise MisuseError(
            f"{place} is of no form that is read here: {', '.join(readers)}. Its name must end so."
        )
    table = readers[place.suffix.lower()](place, id_column if id_type == "string" else None)
    if text_column is not None:
        table = _renamed(table, text_column, "text", place)
    if id_column == ROW:
        numbers = pa.array(range(table.num_rows), type=pa.int64())
        table = _without(table, ID).append_column(ID, numbers)
    elif id_column != ID:
        table = _renamed(table, id_column, ID, place)
    elif ID not in table.column_names:
        raise MisuseError(
            f"{place} has no column {ID!r}; it has {', '.join(table.column_names)}. Say which one "
            f"holds the run's ids with --id-column, or --id-column {ROW} if ids are row numbers "
            "from 0."
        )
    picture = Pictures(place.parent if pictures is None else pictures)
    found = samples_table(table, id_type, picture)
    if picture.left_out:
        warnings.warn(
            f"{len(picture.left_out)} pictures of {str(place)!r} are left out. The first: "
            f"{picture.left_out[0]}",
            InRunWarning, stacklevel=2,
        )  # fmt: skip
    return found


def _without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns([name]) if name in table.column_names else table


def _renamed(table: pa.Table, name: str, to: str, place: Path) -> pa.Table:
    if name not in table.column_names:
        raise MisuseError(
            f"{place} has no column {name!r}; it has {', '.join(table.column_names)}."
        )
    kept = table if name == to else _without(table, to)
    return kept.rename_columns([to if n == name else n for n in kept.column_names])


def _parquet(place: Path, _: str | None) -> pa.Table:
    try:
        return pq.ParquetFile(pa.BufferReader(place.read_bytes())).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MisuseError(f"{place} is torn or not a Parquet file ({error}).") from error


def _csv(place: Path, as_text: str | None) -> pa.Table:
    types = {as_text: pa.string()} if as_text is not None else {}  # '007' is not 7
    try:
        return pyarrow.csv.read_csv(
            place,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if place.suffix.lower() == ".tsv" else ",", newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"{place} cannot be read as a table: {error}") from error


def _lines(place: Path, _: str | None) -> pa.Table:
    rows: list[dict[str, Any]] = []
    try:
        with open(place, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(place, number, line))
    except UnicodeDecodeError as error:
        raise MisuseError(f"{place} is not UTF-8 text: {error}") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: plain_column(name, [row.get(name) for row in rows]) for name in names})


def _row(place: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{place}, line {number}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise MisuseError(f"{place}, line {number}: a JSON object is wanted, not {line.strip()!r}.")
    return row
