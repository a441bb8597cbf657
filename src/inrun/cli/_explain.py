"""`inrun explain`: why the validation loss jumped, from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import inrun
from inrun.cli._options import IdColumn, RunFolder, SamplesFile, TextColumn, samples_of
from inrun.cli._terminal import Cells, Progress, Terminal, one_line, plain, terminal
from inrun.cli._written import write_table
from inrun.errors import MisuseError
from inrun.training import open_training
from inrun.uses import jumps, not_reproducible, trains_itself

SHOWN, TEXT = 8, 80  # rows, and characters of a text


def explain(
    run: RunFolder,
    step: Annotated[int | None, typer.Option(help="The step; else the largest jump.")] = None,
    first: Annotated[int | None, typer.Option("--from", help="A stretch's first step.")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Its last step.")] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="Explain so many of the largest jumps.")
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Train the steps again without the rows named; after --record.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="All visits as .csv or .parquet.")] = None,
    samples: SamplesFile = None,
    id_column: IdColumn = "sample_id",
    text_column: TextColumn = None,
) -> None:
    """Why did the validation loss rise, or fall, here: by what, through which rows and sources."""
    stored = inrun.load(run)
    told = samples_of(stored, samples, id_column, text_column)
    if worst is not None and (step is not None or first is not None or last is not None):
        raise MisuseError("--worst looks for the steps itself: leave --step, --from and --to out.")
    console = terminal()
    stretches = [(step, first, last)]
    if worst is not None:
        stretches = [(number, None, None) for number in jumps(stored, worst)]
    for number, (one, begin, end) in enumerate(stretches):
        found = inrun.explain(stored, one, first=begin, last=end, samples=told)
        if number:
            console.print()
        _print(console, found)
        if check:
            console.say(*_again(run, found))
        write_table(console, None if worst else out, found.table)


def _print(console: Terminal, found: inrun.Explanation) -> None:
    console.say(*found.sentences())
    content = [n for n in ("label", "source", "text", "file") if n in found.table.column_names]
    table = Cells("step", "sample", "put on", "deviations", "elsewhere", "visits", *content)
    for row in found.table.slice(0, SHOWN).to_pylist():
        others = row["other_visits"]
        table.add_row(
            str(row["step"]), plain(str(row["sample_id"])), f"{row['put_on']:+.3g}",
            f"{row['deviations']:+.1f}", f"{row['elsewhere']:+.3g}" if others else "",
            str(others + 1), *(plain(one_line(str(row[name] or ""))[:TEXT]) for name in content),
        )  # fmt: skip
    console.print(table)


def _again(run: Path, found: inrun.Explanation) -> list[str]:
    if not trains_itself(run):
        raise not_reproducible(run, "how to train again; inrun.explain_again does it in Python")
    training = open_training(run)
    with Progress() as at:
        at("training the steps again without the rows")
        again = inrun.explain_again(found, training.trajectory(), training.utility())
    return again.sentences()
