"""Tables written where the command line says; as CSV without a cell that is a formula.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`, also behind blanks; and where the
reader's country separates cells by `;`, or somebody chooses `|` or a tab, what stands behind those
is a cell of its own. Each such place gets an apostrophe. `csvCell` in the report's `export.js` does
the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from inrun.cli._terminal import Terminal
from inrun.errors import MisuseError, StoreError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FIRST = re.compile(r"[\s|;]*[=+\-@\uff0b\uff0d\uff1d\uff20]|[\t\r]")
_LATER = re.compile(r"([|;\t\r\n][\s|;]*)(?=[=+\-@\uff0b\uff0d\uff1d\uff20])")


def defused(text: str) -> str:
    """A cell's text, as no spreadsheet takes it for a formula; numbers stay."""
    if _NUMBER.fullmatch(text):
        return text
    found = _LATER.sub(r"\1'", text)
    return "'" + found if _FIRST.match(text) else found


def defused_table(table: pa.Table) -> pa.Table:
    """The same of every text in a table, and of its columns' names."""
    for at, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            cells = [None if text is None else defused(text) for text in column.to_pylist()]
            column = pa.chunked_array([pa.array(cells, type=column.type)])
        table = table.set_column(at, defused(name), column)
    return table


def write_table(console: Terminal, path: Path | None, table: pa.Table) -> None:
    """A table as .csv, whose texts are no formulas, or .parquet, where a place was named.

    An older one is replaced.

    Raises:
        MisuseError: the name says neither form.
        StoreError: it cannot be written.
    """
    if path is None:
        return
    try:
        if path.suffix == ".parquet":
            with open(path, "wb") as file:
                pq.write_table(table, file)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(defused_table(table), path)
        else:
            raise MisuseError(f"{path} must end in .csv or .parquet, which says its form.")
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error}") from error
    console.say(f"Table: {path}")
