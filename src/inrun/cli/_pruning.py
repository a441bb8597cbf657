"""`inrun prune`, once it is parsed: the list, the check, and what is written."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inrun.cli._entry import entry as load_entry
from inrun.cli._terminal import Cells, Terminal, heard, one_line, plain, terminal
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


class Place(NamedTuple):
    """Where what is kept goes, and the rows it is made of."""

    out: Path | None
    samples: pa.Table | None
    own: OwnRows | None


class Trainings(NamedTuple):
    """What `--check` was told."""

    check: bool
    seeds: int
    entry: str | None
    at_most: int | None = None


def run(stored: Run, pruning: Pruning, place: Place, trainings: Trainings) -> None:
    """Prints the list, checks it where asked, and writes what is kept unless the check says no."""
    console = terminal()
    if place.out is not None:
        check_place(place.out)
    train = _training(stored, trainings.entry) if trainings.check else None
    _print_list(console, pruning, place.samples)
    if train is not None:
        found = _checked(
            console, _results_file(stored, pruning, trainings), pruning, train, trainings
        )
        _print_check(console, found)
        if not found.supported:
            if place.out is not None:
                console.print(f"{plain(str(place.out))} was not written.", soft_wrap=True)
            sys.exit(NOT_SUPPORTED)
    else:
        console.print(
            "Not checked: this is a list, not a suggestion. --check trains again without these, "
            "without as many random ones, and on all.",
            soft_wrap=True,
        )
    if place.out is not None:
        visited = pruning.table["sample_id"].to_pylist()
        count = write_kept(place.out, pruning.dropped, visited, place.samples, place.own)
        console.print(f"{count:,} samples kept: {plain(str(place.out))}", soft_wrap=True)


def own_rows(stored: Run, samples: Path | None, id_column: str) -> OwnRows | None:
    """The user's file that the samples are rows of, if it is known."""
    if samples is not None:
        return OwnRows(samples, None if id_column == ":row" else id_column)
    if not trains_itself(stored.path):
        return None
    config = read_config(stored.path)
    data = Path(config.data)
    return OwnRows(data, config.id_column) if data.is_file() else None


def _print_list(console: Console, pruning: Pruning, samples: pa.Table | None) -> None:
    for sentence in pruning.sentences():
        console.print(plain(sentence), soft_wrap=True)
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


def _results_file(stored: Run, pruning: Pruning, trainings: Trainings) -> Path:
    """A file for each question: which samples are left out, and what trains without them."""
    question = json.dumps([pruning.dropped, pruning.balanced, trainings.entry])
    return stored.path / f"check-{hashlib.sha256(question.encode()).hexdigest()[:12]}.jsonl"


def _checked(
    console: Terminal, store: Path, pruning: Pruning, train: Train, trainings: Trainings
) -> Comparison:
    if store.exists():
        console.print(
            f"Going on from the results in {plain(str(store))}; remove it to train all again.",
            soft_wrap=True,
        )
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        total = len(ARMS) * (trainings.at_most or trainings.seeds)
        number = bar.add_task("training again", total=total)
        with heard(console, f"training again: 0 of {total} done") as at:

            def tick(_: object) -> None:
                bar.advance(number)
                at(f"training again: {bar.tasks[0].completed:.0f} of {total} done")

            return check_pruning(
                pruning, train, seeds=trainings.seeds, at_most=trainings.at_most, store=store,
                tick=tick,
            )  # fmt: skip


def _training(stored: Run, entry: str | None) -> Train:
    if entry is not None:
        return load_entry(entry)
    if trains_itself(stored.path):
        return training_again(stored.path)
    raise not_reproducible(stored.path, "how to train again")


def _print_check(console: Console, found: Comparison) -> None:
    seeds = len(found.scores["pruned"])
    table = Cells("trained on", f"score (mean of {seeds}, 95 % interval)", "seconds each")
    for arm in ARMS:
        table.add_row(arm, f"{found.mean(arm):.4f}", f"{found.seconds[arm]:.1f}")
    console.print(table)
    for arm in ARMS[::2]:
        console.print(f"pruned - {arm}: {found.gain(arm):+.4f}", highlight=False, soft_wrap=True)
    verdict, *rest = found.sentences()
    console.print(f"[bold]{plain(verdict)}[/bold]", soft_wrap=True)
    for sentence in rest:
        console.print(plain(sentence), highlight=False, soft_wrap=True)
