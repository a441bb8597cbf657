"""What questions to a run return: it answers at a glance, and its rows go to any other tool.

In a terminal it prints one sentence and its first rows, in a notebook the same as a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import Any

import pyarrow as pa

SHOWN, LONGEST = 8, 40


class Answer(ABC):
    """Sentences and a table."""

    table: pa.Table

    def to_arrow(self) -> pa.Table:
        """The rows as a pyarrow table."""
        return self.table

    @abstractmethod
    def sentences(self) -> Sequence[str]:
        """What the rows say, in a few words."""

    def to_pandas(self) -> Any:
        """The rows as a pandas data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        return self.to_arrow().to_pandas()

    def __repr__(self) -> str:
        head, rows, rest = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in ([head, *rows] if rows else [])
        ]
        return "\n".join([*map(_printable, self.sentences()), *lines, *rest])

    def _repr_html_(self) -> str:
        head, rows, rest = self._cells()
        said = "".join(f"<p>{escape(text)}</p>" for text in self.sentences())
        top = "".join(f"<th>{escape(name)}</th>" for name in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
        return said + table + "".join(f"<p>{escape(text)}</p>" for text in rest)

    def _cells(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Names of the columns, the first rows, and how many rows there are besides."""
        table = self.to_arrow()
        columns = [[_cell(v) for v in column.slice(0, SHOWN).to_pylist()] for column in table]
        more = table.num_rows - SHOWN
        return (
            [_cell(name) for name in table.column_names],
            [list(row) for row in zip(*columns, strict=True)],
            [f"({more:,} more rows: to_pandas(), to_arrow())"] if more > 0 else [],
        )


def _cell(value: object) -> str:
    """One line, however long the value is."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = _printable(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _printable(text: str) -> str:
    """A terminal would obey control characters, and anybody may have written them."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
