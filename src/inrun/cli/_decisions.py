"""The verbs that turn a stored run into decisions: report, prune, rollup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console

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
from inrun.cli._terminal import Cells, Progress, plain, terminal
from inrun.cli._written import write_table
from inrun.errors import MisuseError


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
        console.print(
            "The run was not told what its samples are, so the page shows ids. Pass --samples FILE."
        )
    console.print(f"Report: [bold]{plain(str(path.resolve()))}[/bold]", soft_wrap=True)


def share_or_count(text: str) -> float | int:
    """'10%' or '0.1' is a share, '200' a number of samples."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise MisuseError(
            f"--drop {text!r} is neither a share (10%, 0.1) nor a number, nor a .txt file of ids."
        ) from None


def to_drop(text: str, stored: inrun.Run) -> float | int | list[Any]:
    """A share, a number, or the ids that a .txt file names, one per line."""
    if not text.endswith(".txt"):
        return share_or_count(text)
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
    ids = [line for line in lines if line]
    numbers = pa.types.is_integer(stored.values()["sample_id"].type)
    return [int(i) if numbers and i.lstrip("-").isdigit() else i for i in ids]


def prune(
    run: RunFolder,
    drop: Annotated[
        str, typer.Option(help="A share (10%, 0.1), a number of samples, or a .txt file of ids.")
    ] = "10%",
    out: Annotated[
        Path | None,
        typer.Option(
            help="What is kept: .txt for ids; else rows, as they stand in data of that form."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="total, normalised, harm (the worst-harmed target), gradient or label_doubt."
        ),
    ] = "total",
    balanced: Annotated[
        str,
        typer.Option(
            help="A column each value of which loses the same share; auto: the label, if any; none."
        ),
    ] = "auto",
    confidence: Annotated[
        float | None, typer.Option(help="Drop no sample less surely harmful than this (0.95).")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Train again: pruned, as many random ones dropped, all.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Planned trainings of each, for --check.")] = 5,
    at_most: Annotated[
        int | None, typer.Option(help="Train on until the check is decided, at most so many.")
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(help="module:function(ids, seed) -> score, higher is better; for --check."),
    ] = None,
    samples: SamplesFile = None,
    id_column: IdColumn = "sample_id",
    judge: Judge = None,
) -> None:
    """Choose harmful samples to leave out, say how sure each is, and check it by training again."""
    from inrun.cli import _pruning

    stored = inrun.load(run)
    told = samples_of(stored, samples, id_column)
    pruning = inrun.prune(
        stored,
        to_drop(drop, stored),
        by=by,
        balanced=None if balanced == "none" else balanced,
        at_least=confidence,
        samples=told,
        judge=judge,
    )
    place = _pruning.Place(out, told, _pruning.own_rows(stored, samples, id_column))
    _pruning.run(stored, pruning, place, _pruning.Trainings(check, seeds, entry, at_most))


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
    if out is not None:
        write_table(out, found.table)
        console.print(f"Table: {plain(str(out))}", soft_wrap=True)
    if page is not None:
        write_rollup(found, page, only=only)
        console.print(f"Page: {plain(str(page.resolve()))}", soft_wrap=True)


def _print_rollup(console: Console, found: inrun.Rollup) -> None:
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
    for note in found.notes():
        console.print(note, highlight=False, markup=False, soft_wrap=True)
