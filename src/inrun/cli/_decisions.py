"""The verbs that show what stored runs say: report, rollup, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import inrun
from inrun.cli._options import (
    IdColumn,
    Judge,
    PicturesFolder,
    RunFolder,
    SamplesFile,
    TextColumn,
    samples_of,
)
from inrun.cli._terminal import Cells, Progress, Terminal, plain, terminal
from inrun.cli._written import write_table

SHOWN = 8  # rows of a difference


def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page; RUN/report.html where not said.")
    ] = None,
    samples: SamplesFile = None,
    id_column: IdColumn = "sample_id",
    text_column: TextColumn = None,
    pictures: PicturesFolder = None,
    judge: Judge = None,
) -> None:
    """Write a run's report: one HTML file, opened offline, with words, charts and the samples."""
    from inrun.report import write_report

    stored = inrun.load(run)
    told = samples_of(stored, samples, id_column, text_column, pictures)
    path = out or run / "report.html"
    with Progress() as at:
        at("writing the page")
        write_report(stored, path, samples=told, judge=judge)
    console = terminal()
    if told is None:
        console.say(
            "The run was not told what its samples are, so the page shows ids. Pass --samples FILE."
        )
    console.print(f"Report: [bold]{plain(path.resolve())}[/bold]", soft_wrap=True)


def rollup(
    run: RunFolder,
    by: Annotated[str, typer.Option(help="The samples' column to sum over.")] = "source",
    out: Annotated[Path | None, typer.Option(help="The table as .csv or .parquet.")] = None,
    page: Annotated[Path | None, typer.Option(help="The same as an HTML page to show.")] = None,
    only: Annotated[
        str | None, typer.Option(help="On the page, one group by name; the others unnamed.")
    ] = None,
    duplicates: Annotated[
        str, typer.Option(help="split: equal contents share their value among groups; booked.")
    ] = "split",
    clusters: Annotated[
        str | None, typer.Option(help="A column: its levels' rows are no independent draws.")
    ] = None,
    samples: SamplesFile = None,
    id_column: IdColumn = "sample_id",
    judge: Judge = None,
) -> None:
    """What each provider's, domain's or class's data was worth, adding up to the books."""
    from inrun.report import write_rollup

    stored = inrun.load(run)
    told = samples_of(stored, samples, id_column)
    found = inrun.rollup(
        stored, by, samples=told, duplicates=duplicates, judge=judge, clusters=clusters
    )
    console = terminal()
    _print_rollup(console, found)
    write_table(console, out, found.table)
    if page is not None:
        write_rollup(found, page, only=only)
        console.say(f"Page: {page.resolve()}")


def _print_rollup(console: Terminal, found: inrun.Rollup) -> None:
    table = Cells(
        plain(found.by), "samples", "value", "95 % interval", "share", "harmful", "duplicated"
    )
    for row in found.table.to_pylist():
        table.add_row(
            plain(row["group"]),
            f"{row['samples']:,}",
            f"{row['value']:+.4g}",
            f"{row['low']:+.3g} to {row['high']:+.3g}",
            f"{row['share']:.1%} ({row['share_low']:.1%} to {row['share_high']:.1%})",
            f"{row['harmful']:.0%}",
            f"{row['duplicated']:,}",
        )
    for name in found.books:
        if name not in ("samples", "fall"):
            table.add_row(name.replace("_", " "), "", found.booked(name), "", "", "", "")
    table.add_row("fall of the loss", "", found.booked("fall"), "", "", "", "")
    console.print(table)
    console.say(*found.notes())


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
    console.say(*found.sentences())
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
    write_table(console, out, found.table)
    if page is not None:
        from inrun.report import write_diff

        write_diff(found, page)
        console.say(f"Page: {page.resolve()}")
