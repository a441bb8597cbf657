"""`inrun prune`: the list of samples to leave out, the check of it, and what is kept, written."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import inrun
from inrun.cli._options import IdColumn, Judge, RunFolder, SamplesFile, entered, samples_of
from inrun.cli._terminal import Cells, Terminal, heard, one_line, plain, terminal
from inrun.errors import MisuseError
from inrun.ledger import Run
from inrun.training import read_config
from inrun.uses import (
    ARMS,
    Comparison,
    OwnRows,
    Pruning,
    Train,
    check_place,
    check_pruning,
    described,
    not_reproducible,
    training_again,
    trains_itself,
    write_kept,
)

SHOWN, TEXT = 12, 80  # rows, and characters of a text
NOT_SUPPORTED = 3  # exit code


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
    stored = inrun.load(run)
    told = samples_of(stored, samples, id_column)
    pruning = inrun.prune(
        stored,
        _to_drop(drop, stored),
        by=by,
        balanced=None if balanced == "none" else balanced,
        at_least=confidence,
        samples=told,
        judge=judge,
    )
    console = terminal()
    if out is not None:
        check_place(out)
    train = _training(stored, entry) if check else None
    _print_list(console, pruning, told)
    if train is None:
        console.say(
            "Not checked: this is a list, not a suggestion. --check trains again without these, "
            "without as many random ones, and on all."
        )
    else:
        question = json.dumps([pruning.dropped, pruning.balanced, entry])
        name = f"check-{hashlib.sha256(question.encode()).hexdigest()[:12]}.jsonl"
        found = _checked(console, pruning, train, stored.path / name, seeds, at_most)
        if not found.supported:
            console.say(*([] if out is None else [f"{out} was not written."]))
            sys.exit(NOT_SUPPORTED)
    if out is not None:
        visited = pruning.table["sample_id"].to_pylist()
        own = _own_rows(stored, samples, id_column)
        count = write_kept(out, pruning.dropped, visited, told, own)
        console.say(f"{count:,} samples kept: {out}")


def _share_or_count(text: str) -> float | int:
    """'10%' or '0.1' is a share, '200' a number of samples."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise MisuseError(
            f"--drop {text!r} is neither a share (10%, 0.1) nor a number, nor a .txt file of ids."
        ) from None


def _to_drop(text: str, stored: inrun.Run) -> float | int | list[Any]:
    """A share, a number, or the ids that a .txt file names, one per line."""
    if not text.endswith(".txt"):
        return _share_or_count(text)
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
    ids = [line for line in lines if line]
    numbers = pa.types.is_integer(stored.values()["sample_id"].type)
    return [int(i) if numbers and i.lstrip("-").isdigit() else i for i in ids]


def _own_rows(stored: Run, samples: Path | None, id_column: str) -> OwnRows | None:
    """The user's file that the samples are rows of, if it is known."""
    if samples is not None:
        return OwnRows(samples, None if id_column == ":row" else id_column)
    if not trains_itself(stored.path):
        return None
    config = read_config(stored.path)
    data = Path(config.data)
    return OwnRows(data, config.id_column) if data.is_file() else None


def _print_list(console: Terminal, pruning: Pruning, samples: pa.Table | None) -> None:
    console.say(*pruning.sentences())
    dropped = pruning.table.filter(pruning.table["dropped"])
    told = described(dropped.slice(0, SHOWN), samples)
    content = [n for n in ("label", "suggested_label", "text", "file") if n in told.column_names]
    heads = [name.replace("suggested_label", "rather") for name in content]
    ranks = pruning.by == "label_doubt"  # scores are ranks less one more than there are
    n = pruning.table.num_rows
    table = Cells(
        "sample",
        "doubt rank" if ranks else "score",
        "surely harmful",
        "value",
        "visits",
        "harms most",
        *heads,
    )
    for row, known in zip(dropped.slice(0, SHOWN).to_pylist(), told.to_pylist(), strict=True):
        sure = row["confidence"]
        table.add_row(
            plain(str(row["sample_id"])),
            f"{row['score'] + n + 1:.0f}" if ranks else f"{row['score']:+.3g}",
            "" if sure is None else f"{int(100 * sure)} %",
            f"{row['value']:+.3g}",
            str(row["visits"]),
            plain(row.get("worst_target", "")),
            *(plain(one_line(_short(known[name]))[:TEXT]) for name in content),
        )
    console.print(table)


def _short(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell or "")


def _checked(
    console: Terminal, pruning: Pruning, train: Train, store: Path, seeds: int, at_most: int | None
) -> Comparison:
    """Trains again, and prints what came of it."""
    if store.exists():
        console.say(f"Going on from the results in {store}; remove it to train all again.")
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        total = len(ARMS) * (at_most or seeds)
        number = bar.add_task("training again", total=total)
        with heard(console, f"training again: 0 of {total} done") as at:

            def tick(_: object) -> None:
                bar.advance(number)
                at(f"training again: {bar.tasks[0].completed:.0f} of {total} done")

            found = check_pruning(
                pruning, train, seeds=seeds, at_most=at_most, store=store, tick=tick
            )
    _print_check(console, found)
    return found


def _training(stored: Run, entry: str | None) -> Train:
    if entry is not None:
        return entered(entry)
    if trains_itself(stored.path):
        return training_again(stored.path)
    raise not_reproducible(stored.path, "how to train again")


def _print_check(console: Terminal, found: Comparison) -> None:
    seeds = len(found.scores["pruned"])
    table = Cells("trained on", f"score (mean of {seeds}, 95 % interval)", "seconds each")
    for arm in ARMS:
        table.add_row(arm, f"{found.mean(arm):.4f}", f"{found.seconds[arm]:.1f}")
    console.print(table)
    console.say(*(f"pruned - {arm}: {found.gain(arm):+.4f}" for arm in ARMS[::2]))
    verdict, *rest = found.sentences()
    console.say(verdict, style="bold")
    console.say(*rest)
