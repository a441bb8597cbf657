"""`inrun trace`: where a behaviour came from, from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich.text import Text

import inrun
from inrun.cli._options import IdColumn, RunFolder, SamplesFile, TextColumn, entered
from inrun.cli._terminal import Progress, Terminal, one_line, plain, printable, terminal
from inrun.cli._written import write_table
from inrun.errors import MisuseError
from inrun.ledger import read_samples
from inrun.replay import Replayable
from inrun.uses import (
    described,
    not_reproducible,
    replayable_again,
    trains_itself,
)

STATES = "trajectory"
HELPED, HARMED = (42, 157, 143), (209, 73, 91)


def trace(
    run: RunFolder,
    query: Annotated[
        Path | None,
        typer.Option(help="What to ask: .txt is one query; .jsonl, .csv, .parquet one a row."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="In place of a file: a target named before training.")
    ] = None,
    method: Annotated[str, typer.Option(help="look-ahead or tracin, for --query.")] = "look-ahead",
    entry: Annotated[
        str | None,
        typer.Option(help="module:function() -> inrun.Replayable: model, optimizer, losses, ..."),
    ] = None,
    standardised: Annotated[
        bool | None,
        typer.Option(help="Rank by how far a visit stands out in its step; so for --target."),
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option(help="The recording; RUN/trajectory or RUN where not said.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Sources to show of each query.")] = 10,
    out: Annotated[Path | None, typer.Option(help="The whole ranking as .csv or .parquet.")] = None,
    page: Annotated[Path | None, typer.Option(help="The sources as an HTML page.")] = None,
    samples: SamplesFile = None,
    id_column: IdColumn = "sample_id",
    text_column: TextColumn = None,
) -> None:
    """Which training samples moved the model towards a text: ranked sources, token by token."""
    if (query is None) == (target is None):
        raise MisuseError(
            "Say what to trace: --query FILE for a recorded run, or --target NAME for a target "
            "that was named before training."
        )
    console = terminal()
    if query is None:
        stored = inrun.load(run)
        found, tokens = inrun.trace(stored, target, standardised=standardised), None
        queries = {str(target): ""}
        id_type: str | None = stored.id_type
    else:
        again = replayable(run, entry)
        recorded, utility = questioned(run, query, again, entry, trajectory)
        asked = utility.batches.items()
        queries = {name: str(row.get("text", "")) for name, row in asked}
        with Progress() as at:
            at(f"playing the recording of {len(recorded.steps):,} steps back")
            found = inrun.trace(
                recorded, utility, method=method, standardised=standardised,
                token_losses=again.token_losses, top=top,
            )  # fmt: skip
        tokens = again.tokens
        first = found.table["sample_id"][0].as_py()
        id_type = "string" if isinstance(first, str) else "int64"
    told = _samples(run, samples, id_column, id_type, text_column)
    shown = _shown(found, told, tokens, top)
    _print(console, found, queries, shown)
    write_table(console, out, found.table)
    if page is not None:
        from inrun.report import write_trace

        write_trace(found, queries, shown, page)
        console.say(f"Page: {page.resolve()}")


def questioned(
    run: Path, query: Path, again: Replayable, entry: str | None, trajectory: Path | None
) -> tuple[inrun.Trajectory, inrun.Utility]:
    """A recorded run, and a file's queries as the utility that it is asked by, one target each.

    Raises:
        MisuseError: `entry` did not say what a query's loss is.
    """
    targets = _rows(query)
    inside = run / STATES
    recorded = inrun.load(trajectory or (inside if inside.exists() else run), again)
    if again.query_loss is None:
        raise MisuseError(f"{entry} returned an inrun.Replayable without query_loss.")
    return recorded, inrun.Utility(again.query_loss, targets=targets)


def replayable(run: Path, entry: str | None) -> Replayable:
    if entry is None:
        if trains_itself(run):
            return replayable_again(run)
        raise not_reproducible(run, "how its model and losses are built")
    found = entered(entry)()
    if not isinstance(found, Replayable):
        raise MisuseError(f"{entry} returned {type(found).__name__}, not an inrun.Replayable.")
    return found


def _rows(file: Path) -> dict[str, dict[str, Any]]:
    """The file's queries by name; a mapping each, which `query_loss` is given."""
    if file.suffix.lower() == ".txt":
        try:
            return {file.stem: {"text": file.read_text(encoding="utf-8").strip()}}
        except (OSError, UnicodeDecodeError) as error:
            raise MisuseError(f"The query {file} cannot be read: {error}") from error
    rows = read_samples(file, id_column=":row").to_pylist()
    found = {str(row.pop("query", None) or f"query {row['sample_id'] + 1}"): row for row in rows}
    if len(found) < len(rows):
        raise MisuseError(f"Two queries in {file} have the same name in the column 'query'.")
    if not found:
        raise MisuseError(f"{file} holds no query.")
    return found


def _samples(
    run: Path, file: Path | None, id_column: str, id_type: str | None, text_column: str | None
) -> pa.Table | None:
    if file is not None:
        return read_samples(file, id_column=id_column, id_type=id_type, text_column=text_column)
    return inrun.load(run).samples() if (run / "run.json").exists() else None


def _shown(
    found: inrun.Trace, told: pa.Table | None, tokens: Any, top: int
) -> dict[str, list[dict[str, Any]]]:
    """By query, its first sources: ranking, sample, and tokens with their values."""
    best = found.table.filter(pc.less_equal(found.table["rank"], top))
    rows = described(best, told).to_pylist()
    shown: dict[str, list[dict[str, Any]]] = {}
    for ranked, sample in zip(best.to_pylist(), rows, strict=True):
        key = (ranked["query"], ranked["sample_id"])
        values = found.tokens.get(key)
        if values is not None and tokens is not None:
            strings = tokens([ranked["sample_id"]])[0]
            sample["tokens"], sample["token_values"] = strings, values[: len(strings)]
        shown.setdefault(ranked["query"], []).append(ranked | sample)
    return shown


def _print(
    console: Terminal,
    found: inrun.Trace,
    queries: dict[str, str],
    shown: dict[str, list[dict[str, Any]]],
) -> None:
    for query, rows in shown.items():
        console.print(
            f"\n[bold]{plain(query)}[/bold] {plain(one_line(queries.get(query, ''))[:300])}"
        )
        for row in rows:
            facts = " ".join(str(row[k]) for k in ("label", "source") if row.get(k) is not None)
            console.print(
                f"{row['rank']:>3}. [bold]{plain(str(row['sample_id']))}[/bold] "
                + (f"stands out {row['score']:+.2f}, value " if found.standardised else "")
                + f"{row['value']:+.3g} ({row['share']:.1%}) {plain(facts)}",
                highlight=False,
            )
            console.print(_text(row))
    by = (
        "how far a sample's visits stand out among those of their steps, in standard deviations, "
        "summed"
        if found.standardised
        else "value"
    )
    console.say(
        f"\nRanked by {by} ({found.method}). Values: what was taken off the query's loss; shares "
        "are of all that lowered it."
    )


def _text(row: dict[str, Any]) -> Text:
    if "tokens" not in row:
        return Text(one_line(printable(row.get("text") or ""))[:300])
    most = max((abs(v) for v in row["token_values"]), default=0.0) or 1.0
    text = Text()
    for token, value in zip(row["tokens"], row["token_values"], strict=False):
        strength = abs(value) / most
        color = [round(strength * c) for c in (HARMED if value < 0 else HELPED)]
        style = f"on rgb({','.join(map(str, color))})" if strength > 0.1 else ""
        text.append(printable(token).replace("\n", " "), style=style)
    return text
