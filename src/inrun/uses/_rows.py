"""Chosen samples written as a file to train on: ids, or the rows they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from inrun.errors import MisuseError, StoreError

FORMS = (".txt", ".jsonl", ".csv", ".parquet")


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
    pruning_dropped: Sequence[Any],
    visited: Sequence[Any],
    samples: pa.Table | None,
    lines: Path | None = None,
) -> int:
    """Writes every sample that is not dropped; those that were never visited are kept too.

    Args:
        path: .txt for ids, .jsonl, .csv or .parquet for rows.
        pruning_dropped: ids to leave out.
        visited: ids of all visited samples.
        samples: the rows; None writes ids alone.
        lines: the .jsonl file that the samples were read from, row by row: its lines are then
            copied as they stand.

    Returns:
        How many were written.

    Raises:
        StoreError: the place is taken or cannot be written.
    """
    check_place(path)
    rows = samples if samples is not None else pa.table({"sample_id": pa.array(list(visited))})
    gone = pa.array(list(pruning_dropped), type=rows["sample_id"].type)
    keep = pc.invert(pc.is_in(rows["sample_id"], value_set=gone))
    beside = path.with_name(path.name + ".partial")
    try:
        if lines is not None and path.suffix == ".jsonl":
            _copy_lines(lines, beside, keep.to_pylist())
        else:
            _write(beside, path.suffix.lower(), rows.filter(keep))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{path} could not be written: {error}") from error
    return int(pc.sum(keep).as_py())


def _copy_lines(source: Path, to: Path, keep: list[bool]) -> None:
    with (
        open(source, encoding="utf-8", newline="") as read,
        open(to, "w", encoding="utf-8", newline="") as write,
    ):
        filled = (line for line in read if line.strip())
        for line, stays in zip(filled, keep, strict=True):
            if stays:
                write.write(line if line.endswith("\n") else line + "\n")


def _write(path: Path, form: str, rows: pa.Table) -> None:
    if form == ".parquet":
        pq.write_table(rows, path)
        return
    plain = rows.drop_columns(["image"]) if "image" in rows.column_names else rows
    if form == ".csv":
        pyarrow.csv.write_csv(plain, path)
        return
    with open(path, "w", encoding="utf-8") as file:
        for row in plain.to_pylist():
            text = str(row["sample_id"]) if form == ".txt" else json.dumps(row, default=str)
            file.write(text + "\n")
