"""`inrun validate`: whether a run's values say what training without many samples does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import inrun
from inrun.cli._options import RunFolder
from inrun.cli._terminal import Cells, Progress, Terminal, plain, terminal
from inrun.cli._trace import questioned, replayable
from inrun.truth import DatamodelingScore, RemovalCurve, lds, removal_curve
from inrun.uses import Contents, values_by_method


def validate(
    run: RunFolder,
    query: Annotated[
        Path, typer.Option(help="What values are of: .txt is one query; .jsonl, .csv one a row.")
    ],
    subsets: Annotated[
        int, typer.Option(min=10, help="Trainings without random halves; an even number.")
    ] = 30,
    processes: Annotated[int, typer.Option(min=0, help="Trainings at a time.")] = 0,
    store: Annotated[
        Path | None, typer.Option(help="A new folder that keeps each training's result.")
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(help="module:function() -> inrun.Replayable: model, optimizer, losses, ..."),
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option(help="The recording; RUN/trajectory or RUN where not said.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only these values, once for each; all that can be had if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the halves and of the random removals.")] = 0,
) -> None:
    """Train a recorded run again without halves of its data, and compare with its values."""
    recorded, utility = questioned(run, query, replayable(run, entry), entry, trajectory)
    console = terminal()
    console.say(
        f"Values of {len(recorded.sample_ids()):,} samples for {len(utility.targets)} queries, "
        f"then {subsets} trainings of {len(recorded.steps):,} steps without half of the samples."
    )
    contents = _contents(run, utility)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
    least = 1 / len(recorded.sample_ids())  # a share of few samples may be less than one of them
    how: dict[str, Any] = {"seed": seed, "processes": processes}
    with Progress() as at:
        values = values_by_method(
            recorded, utility, contents, methods=method, seed=seed,
            tick=lambda name: at(f"values: {name}"),
        )  # fmt: skip
        score = lds(
            recorded, utility, values, subsets=subsets, **how,
            store=None if store is None else store / "halves.jsonl",
            tick=lambda done, every: at("trainings without halves", done, every),
        )  # fmt: skip
        curve = removal_curve(
            recorded, utility, values, **how,
            shares=sorted({max(share, least) for share in (0.01, 0.05)}),
            store=None if store is None else store / "removals.jsonl",
            tick=lambda done, every: at("trainings without the best", done, every),
        )  # fmt: skip
    _print(console, score, curve)


def _print(console: Terminal, score: DatamodelingScore, curve: RemovalCurve) -> None:
    shares = list(dict.fromkeys(curve.table["share"].to_pylist()))
    table = Cells("values", "score", "95 % interval", *(f"best {s:.0%} left out" for s in shares))
    rises = {(row["method"], row["share"]): row for row in curve.table.to_pylist()}
    for row in score.table.to_pylist():
        said = [
            f"{found['rise']:+.4g} (random {found['random']:+.4g})"
            for found in (rises[row["method"], share] for share in shares)
        ]
        between = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(plain(row["method"]), f"{row['score']:.3f}", between, *said)
    console.print(table)
    console.say(*score.sentences(), *curve.sentences())


def _contents(run: Path, utility: inrun.Utility) -> Contents:
    """Texts and labels of the samples, where the run keeps them, and of the queries."""
    kept = inrun.load(run).samples() if (run / "run.json").exists() else None
    queries = list(utility.batches.values())

    def column(name: str) -> dict[Any, Any]:
        if kept is None or name not in kept.column_names:
            return {}
        pairs = zip(kept["sample_id"].to_pylist(), kept[name].to_pylist(), strict=True)
        return {who: cell for who, cell in pairs if cell is not None}

    def asked(name: str) -> list[Any]:
        found = [row.get(name) for row in queries]
        return [] if None in found else found

    return Contents(column("text"), column("label"), asked("text"), asked("label"))
