"""`inrun validate`: whether a run's values say what training without many samples does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

import inrun
from inrun.cli._options import RunFolder
from inrun.cli._terminal import Cells, plain, terminal
from inrun.cli._trace import questioned, replayable
from inrun.replay import tracin
from inrun.truth import lds, removal_curve


def validate(
    run: RunFolder,
    query: Annotated[
        Path, typer.Option(help="What values are of: .txt is one query; .jsonl, .csv one a row.")
    ],
    subsets: Annotated[int, typer.Option(min=10, help="Trainings without random halves.")] = 30,
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
    seed: Annotated[int, typer.Option(help="Of the halves and of the random removals.")] = 0,
) -> None:
    """Train a recorded run again without halves of its data, and compare with its values."""
    recorded, utility = questioned(run, query, replayable(run, entry), entry, trajectory)
    console = terminal()
    console.print(
        f"Values of {len(recorded.sample_ids()):,} samples for {len(utility.targets)} queries, "
        f"then {subsets} trainings of {len(recorded.steps):,} steps without half of the samples.",
        highlight=False,
    )
    values = _values(recorded, utility, seed)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"seed": seed, "processes": processes}
    score = lds(
        recorded, utility, values, subsets=subsets, **how,
        store=None if store is None else store / "halves.jsonl",
    )  # fmt: skip
    least = 1 / len(recorded.sample_ids())  # a share of few samples may be less than one of them
    curve = removal_curve(
        recorded,
        utility,
        values,
        **how,
        shares=sorted({max(share, least) for share in (0.01, 0.05)}),
        store=None if store is None else store / "removals.jsonl",
    )
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
    for sentence in (*score.sentences(), *curve.sentences()):
        console.print(plain(sentence), highlight=False, soft_wrap=True)


def _values(run: inrun.Trajectory, utility: inrun.Utility, seed: int) -> dict[str, pa.Table]:
    """Look-ahead, TracIn, and numbers that know nothing, by sample."""
    found = {
        "look-ahead": inrun.lookahead(run, utility).values(),
        "TracIn": tracin(run, utility, 5).values(),
    }
    draw = random.Random(seed)
    names = utility.targets if len(utility.targets) > 1 else ("value",)
    ids = found["look-ahead"]["sample_id"]
    nothing = {name: [draw.gauss(0, 1) for _ in range(len(ids))] for name in names}
    return found | {"random": pa.table({"sample_id": ids} | nothing)}
