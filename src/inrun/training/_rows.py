"""Rows of data from a file or a folder, each with the place that it came from.

CSV and JSONL files are read here, since a bad row is to be named by its file and line so that it
can be found and mended; saved data sets and those of a hub are read by `datasets`.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inrun.errors import MisuseError, require_extra

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
SHOWN = 5  # bad rows that a message names
LOOKED_AT = 1000  # rows from which a task is seen
LONGEST = 2**31 - 1  # characters of a field; Python's csv takes 131,072 unless told


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, and where it stands, as 'train.csv, line 7'."""

    cells: dict[str, Any]
    where: str


class BadRows:
    """Collects rows that cannot be used, to name them all at once."""

    def __init__(self, skip: bool):
        self._skip, self.found = skip, list[str]()

    def add(self, where: str, what: str) -> None:
        """Notes one."""
        self.found.append(f"{where}: {what}")

    def pay_out(self) -> None:
        """Raises if there were any that may not be skipped.

        Raises:
            MisuseError: names the first of them.
        """
        if self.found and not self._skip:
            more = len(self.found) - SHOWN
            raise MisuseError(
                f"{len(self.found)} of the rows cannot be used:\n  "
                + "\n  ".join(self.found[:SHOWN])
                + (f"\n  and {more} more" if more > 0 else "")
                + "\nMend them, or leave them out with --skip-bad-rows."
            )


def read_rows(source: str, split: str, bad: BadRows) -> list[Row]:
    """Reads all rows of a file, a folder or a hub data set (see `TrainConfig.data`).

    `split` is 'train', 'validation' or 'test', of a data set with several; unreadable rows are
    noted in `bad`.

    Raises:
        MisuseError: nothing is there, or of no known kind.
    """
    path = Path(source)
    saved = any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    if path.is_dir() and not saved:
        rows = list(_image_folder(path))
    elif path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise MisuseError(
                f"{source} ends in {path.suffix or 'nothing'}, and rows are read from "
                f"{', '.join(sorted(_READERS))}, a saved `datasets` folder or a folder of images."
            )
        with reading(path):
            rows = list(reader(path, bad))
    else:
        rows = list(_data_set(source, split, saved))
    if not rows and not bad.found:
        raise MisuseError(f"{source} holds no rows.")
    return rows


def require_columns(source: str, rows: Sequence[Row], wanted: Sequence[str]) -> None:
    """Raises where no row has a column.

    Raises:
        MisuseError: names it, and those that there are.
    """
    for column in wanted:
        if rows and not any(column in row.cells for row in rows):
            raise MisuseError(
                f"{source} has no column {column!r}; it has "
                f"{', '.join(map(str, rows[0].cells))}. Name the right one, for instance with "
                "--text-column, --label-column, --source-column or --id-column."
            )


def task_seen(source: str, label: str | None = None) -> tuple[str, str]:
    """The task that the data looks like, and what it was seen by.

    `label` is the label's column, where one was named.

    Raises:
        MisuseError: nothing is there, or it has no such column.
    """
    rows = read_rows(source, "train", BadRows(skip=True))
    if rows and "image" in rows[0].cells:
        return "image-classification", "images"
    if label is not None:
        require_columns(source, rows, [label])
    column = label or "label"
    cells = [row.cells for row in rows[:LOOKED_AT]]
    for task, names in (("chat", ("messages",)), ("preference", ("chosen", "rejected"))):
        if any(all(name in found for name in names) for found in cells):
            return task, " and ".join(f"the column {name!r}" for name in names)
    tags = label or "tags"
    if any("tokens" in found and tags in found for found in cells):
        return "token-classification", f"the columns 'tokens' and {tags!r}"
    labels = [found[column] for found in cells if found.get(column) is not None]
    if any(isinstance(value, (list, tuple)) for value in labels):
        return "multi-label", f"lists in the column {column!r}"
    if labels and all(map(_is_number, labels)) and any(float(v) % 1 for v in labels):
        return "regression", f"numbers that are not whole in the column {column!r}"
    if any(column in found for found in cells):
        return "text-classification", f"the column {column!r}"
    return "causal-lm", f"texts without a column {column!r}"


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever keeps a file from being read is said in one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        marks = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
        begins = path.read_bytes()[:2]
        form = next((name for mark, name in marks if begins == mark), "LATIN1")
        seen = "it begins as UTF-16 does" if form == "UTF-16" else "it may be Latin-1"
        raise MisuseError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); {seen}. Convert it: "
            + shlex.join(["iconv", "-f", form, "-t", "UTF-8", str(path)])
            + " > NEW, and name NEW."
        ) from None
    except OSError as error:
        raise MisuseError(f"{path} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise MisuseError(f"{path} is no table of fields: {error}.") from error


def _csv(path: Path, bad: BadRows) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        head, begins = next(reader, []), reader.line_num + 1
        for cells in reader:
            where = f"{path}, line {begins}"
            begins = reader.line_num + 1  # a row may have several lines
            if len(cells) == len(head):
                yield Row(dict(zip(head, cells, strict=True)), where)
            elif cells:
                bad.add(where, f"{len(cells)} fields, and the head names {len(head)}")


def _jsonl(path: Path, bad: BadRows) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError) as error:
                bad.add(where, f"not JSON ({error})")
                continue
            if isinstance(cells, dict):
                yield Row(cells, where)
            else:
                bad.add(where, f"a {type(cells).__name__}, and a row is an object {{...}}")


def _parquet(path: Path, bad: BadRows) -> Iterator[Row]:
    try:
        with open(path, "rb") as file:  # a path would be read as column=value too
            table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise MisuseError(f"{path} is torn or not a Parquet file ({error}).") from error
    for number, cells in enumerate(table.to_pylist()):
        yield Row(cells, f"{path}, row {number}")


_READERS: dict[str, Callable[[Path, BadRows], Iterator[Row]]] = {
    ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet,
}  # fmt: skip


def _image_folder(path: Path) -> Iterator[Row]:
    """One folder per class; `file` is an image's path below the whole folder."""
    for file in sorted(path.glob("*/**/*")):
        if file.suffix.lower() in IMAGES:
            inside = file.relative_to(path)
            cells = {"image": str(inside), "label": inside.parts[0], "file": inside.as_posix()}
            yield Row(cells, str(file))


def _data_set(source: str, split: str, saved: bool) -> Iterator[Row]:
    """A saved data set, or one of the hub."""
    if not saved and (
        source.startswith((".", "/", "~")) or Path(source).suffix.lower() in _READERS
    ):
        raise MisuseError(f"{source} does not exist.")
    require_extra("train", "datasets")
    datasets = importlib.import_module("datasets")
    try:
        found = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # whatever stands between here and the hub
        raise MisuseError(
            f"{source} is neither a file nor a folder here, and it could not be loaded as a data "
            f"set: {error}"
        ) from error
    if hasattr(found, "keys"):
        if split not in found:
            raise MisuseError(f"{source} has no part {split!r}; it has {', '.join(found.keys())}.")
        found = found[split]
    names = {k: f.names for k, f in found.features.items() if hasattr(f, "names")}
    for number, cells in enumerate(found):
        for column, known in names.items():  # class labels are stored as numbers
            if isinstance(cells[column], int) and 0 <= cells[column] < len(known):
                cells[column] = known[cells[column]]
        yield Row(cells, f"{source}, row {number}")
