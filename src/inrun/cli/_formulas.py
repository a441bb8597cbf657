"""Tables as CSV in which no cell is a formula: a spreadsheet would run what the data put there.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`, also behind blanks; and where the
reader's country separates cells by `;`, or somebody chooses `|` or a tab, what stands behind those
is a cell of its own. Each such place gets an apostrophe. `csvCell` in the report's `export.js` does
the same.
"""

from __future__ import annotations

import re

import pyarrow as pa

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
