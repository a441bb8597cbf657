"""`inrun diff`: two runs beside each other, from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import inrun
from inrun.cli._options import RunFolder
from inrun.cli._terminal import Cells, plain, terminal
from inrun.cli._written import write_table

SHOWN = 8


def diff(
    run_a: RunFolder,
    run_b: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The common samples as .csv or .parquet.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="All of it as an HTML page.")] = None,
) -> None:
    """What changed between two runs: the data, the books, the values of common samples."""
    found = inrun.diff(run_a, run_b)
    console, (a, b) = terminal(), found.names
    for sentence in found.sentences():
        console.print(plain(sentence), soft_wrap=True, highlight=False)
    books = Cells("entry", plain(a), plain(b), "change")
    for row in found.books.to_pylist():
        numbers = (row["a"], row["b"], row["b"] - row["a"])
        books.add_row(plain(row["entry"]), *(f"{x:+.4g}" for x in numbers))
    console.print(books)
    content = [n for n in ("label", "source", "text") if n in found.table.column_names]
    moved = Cells("sample", "rank", "then", "value", "then", "changed", *content)
    for row in found.table.slice(0, SHOWN).to_pylist():
        moved.add_row(
            plain(row["sample_id"]), f"{row['rank_a']:.0%}", f"{row['rank_b']:.0%}",
            f"{row['value_a']:+.3g}", f"{row['value_b']:+.3g}", row["changed"],
            *(plain(row[name] or "") for name in content),
        )  # fmt: skip
    console.print(moved)
    if out is not None:
        write_table(out, found.table)
        console.print(f"Table: {plain(str(out))}", soft_wrap=True)
    if page is not None:
        from inrun.report import write_diff

        write_diff(found, page)
        console.print(f"Page: {plain(str(page.resolve()))}", soft_wrap=True)
