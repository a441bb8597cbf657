"""What a pruning leaves, written: ids, rows of a table, or the user's own rows byte for byte.

Where the rows come from a file of the form that is written, each row that stays is copied as it
stands, head and columns included; what cannot be read as a row stays too.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from inrun.errors import MisuseError, StoreError

FORMS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
LONGEST = 2**31 - 1  # characters of a field; Python's csv takes 131,072 unless told


class OwnRows(NamedTuple):
    """A user's file, and its column of ids; None where ids are row numbers from 0."""

    file: Path
    id_column: str | None


def check_place(path: Path) -> None:
    """Refuses a place before any work is done.

    Raises:
        MisuseError: the name says no form that is written here.
        StoreError: something is there already.
    """
    if path.suffix.lower() not in FORMS:
        raise MisuseError(f"{path} must end in one of {', '.join(FORMS)}, which says its form.")
    if path.exists():
        raise StoreError(f"{path} is there already. Name another file, or remove it first.")


def write_kept(
    path: Path,
    dropped: Sequence[Any],
    visited: Sequence[Any],
    samples: pa.Table | None,
    own: OwnRows | None = None,
) -> int:
    """Writes every sample that is not dropped, those never visited too; says how many these are.

    Without `samples` ids alone are written. Where `own` has the form that is written, its rows are
    copied as they stand.

    Raises:
        StoreError: the place is taken or cannot be written, or the file has not the dropped rows.
    """
    check_place(path)
    beside = path.with_name(path.name + ".partial")
    try:
        if own is not None and own.file.suffix.lower() == path.suffix.lower():
            count = _copied(own, beside, {str(i) for i in dropped})
        else:
            rows = samples if samples is not None else pa.table({"sample_id": list(visited)})
            gone = pa.array(list(dropped), type=rows["sample_id"].type)
            kept = rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=gone)))
            _write(beside, path.suffix.lower(), kept)
            count = kept.num_rows
        os.replace(beside, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return count


def _copied(own: OwnRows, to: Path, gone: set[str]) -> int:
    """Copies rows whose id is not among those that go; how many stay."""
    kept, left = 0, 0
    if own.file.suffix.lower() == ".parquet":
        table = pq.read_table(pa.BufferReader(own.file.read_bytes()))
        ids = range(table.num_rows) if own.id_column is None else table[own.id_column].to_pylist()
        stays = [str(i) not in gone for i in ids]
        pq.write_table(table.filter(pa.array(stays)), to)
        kept, left = sum(stays), len(stays) - sum(stays)
    else:
        with (
            open(own.file, encoding="utf-8", newline="") as read,
            open(to, "w", encoding="utf-8", newline="") as write,
        ):
            number = 0
            for raw, cells in _rows(read, own.file.suffix.lower()):
                known = number if own.id_column is None else (cells or {}).get(own.id_column)
                number += cells is not None
                stays_here = cells is None or str(known) not in gone
                write.write(raw if stays_here else "")
                kept += cells is not None and stays_here
                left += not stays_here
    if left != len(gone):
        raise StoreError(
            f"{own.file} has {left} of the {len(gone)} rows to leave out: it is not what the run "
            "was trained on any more. Put the original back, or write another form than "
            f"{own.file.suffix}."
        )
    return kept


def _rows(file: TextIO, form: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each row's characters, and its cells; None where it is the head or cannot be read."""
    if form in (".jsonl", ".ndjson"):
        for line in file:
            yield line, _json(line.lstrip("\ufeff"))
        return
    csv.field_size_limit(LONGEST)
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line.lstrip("\ufeff")

    head: list[str] | None = None
    for cells in csv.reader(lines(), delimiter="\t" if form == ".tsv" else ","):
        raw = "".join(taken)
        taken.clear()
        fits = head is not None and len(cells) == len(head)
        yield raw, dict(zip(head or (), cells, strict=True)) if fits else None
        head = cells if head is None else head


def _json(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, form: str, rows: pa.Table) -> None:
    if form == ".parquet":
        pq.write_table(rows, path)
        return
    plain = rows.drop_columns(["image"]) if "image" in rows.column_names else rows
    if form in (".csv", ".tsv"):
        delimiter = "\t" if form == ".tsv" else ","
        pyarrow.csv.write_csv(plain, path, pyarrow.csv.WriteOptions(delimiter=delimiter))
        return
    with open(path, "w", encoding="utf-8") as file:
        for row in plain.to_pylist():
            text = str(row["sample_id"]) if form == ".txt" else json.dumps(row, default=str)
            file.write(text + "\n")
