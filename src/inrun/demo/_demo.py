"""`inrun demo`: the whole story on real digits, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from inrun.demo import _digits as digits
from inrun.demo._experiment import (
    BEST,
    DROPPED_SHARE,
    Findings,
    Tick,
    Trained,
    findings,
    retrained,
    train,
)
from inrun.demo._page import describe, write_page
from inrun.errors import StoreError
from inrun.ledger import Run, known_residual_shares, load_run
from inrun.report import charts


def run_demo(out: Path, *, seed: int = 0, seeds: int = 5, console: Console | None = None) -> Path:
    """Trains, checks, retrains, prints a summary and writes the report.

    Args:
        out: a new folder for the run and the report.
        seed: of the split, the wrong labels and the attributed run.
        seeds: how many times each retraining is repeated.
        console: where to print.

    Returns:
        The report's path.

    Raises:
        StoreError: the folder holds a run already.
    """
    console = console or Console()
    if (out / "run").exists():
        raise StoreError(
            f"{out} holds a demo already. Name another folder with --out, or remove it."
        )
    data = digits.load(seed)
    console.print(
        f"{digits.TRAINING} handwritten digits, {int(data.wrong.sum())} with a wrong label; a "
        f"small CNN, AdamW, {digits.EPOCHS} epochs; judged by {len(data.validation[1])} clean "
        "digits, one target per class."
    )
    steps = digits.EPOCHS * -(-digits.TRAINING // digits.BATCH)
    with _progress(console, steps, 7 * seeds) as tick:
        trained = train(data, seed, out / "run", tick)
        run = load_run(out / "run")
        found = findings(data, trained, run)
        retraining = retrained(data, found, range(seeds), tick)
    _print_summary(console, run, data, trained, found, retraining)
    report = out / "report.html"
    describe(run, data, found)
    write_page(report, run, data, trained, found, retraining)
    console.print(
        f"\nReport: [bold]{report.resolve()}[/bold] (open it in a browser)", soft_wrap=True
    )
    return report


@contextmanager
def _progress(console: Console, steps: int, retrainings: int) -> Iterator[Tick]:
    """A bar in a terminal, a line now and then in a log."""
    totals = {"training with attribution": steps, "retraining": retrainings}
    done = dict.fromkeys(totals, 0)
    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {what: bars.add_task(what, total=total) for what, total in totals.items()}

        def tick(what: str) -> None:
            done[what] += 1
            bars.advance(tasks[what])
            if not console.is_terminal and done[what] % (totals[what] // 5) == 0:
                console.print(f"{what}: {done[what]} of {totals[what]}")

        yield tick


def _print_summary(
    console: Console,
    run: Run,
    data: digits.Digits,
    trained: Trained,
    found: Findings,
    retraining: dict[str, list[float]],
) -> None:
    shares, audit = known_residual_shares(run.ledger()), trained.report
    aucs = sorted(found.auc.items(), key=lambda item: -item[1])
    doubtful = [
        [str(i), *(str(int(labels[i])) for labels in (data.labels, found.suggested, data.truth))]
        for i in found.best_first[:8]
    ]  # fmt: skip
    ranked = sorted(retraining.items(), key=lambda item: -float(np.mean(item[1])))
    dropped = f"Test accuracy after retraining, {DROPPED_SHARE:.0%} dropped (mean, 95 % interval)"
    console.print(
        "\n[bold]Labels to fix[/bold]",
        _table("Look at these first", "sample, labelled, suggested, truly", doubtful),
        f"\n[bold]Why to believe it[/bold]  Wrong labels are found with AUC {found.auc[BEST]:.3f}; "
        f"their true label is named for {found.right_suggestions:.0%}",
        _table("AUC for wrong labels", "ranked by, AUC", [[n, f"{auc:.3f}"] for n, auc in aucs]),
        f"[bold]Ledger[/bold] a step's residual is {np.median(shares):.2%} of its entries in the "
        f"median, {shares.max():.1%} at most",
        f"[bold]Truth[/bold]  Pearson R with exact Shapley values {audit.pearson:.4f} (median over "
        f"{audit.checks} random steps of this run, 95 % interval): `inrun audit RUN` says more",
        f"[bold]Cost[/bold]   attribution took {trained.overhead:.1f} times the plain training's "
        f"time ({trained.seconds:.1f} s in all): every step passes {len(data.validation[1])} "
        f"validation images, for a batch of {digits.BATCH}",
        _table(dropped, "trained on, accuracy", [
            [name, f"{np.mean(scores):.1%} ± {charts.half_interval(np.asarray(scores)):.1%}"]
            for name, scores in ranked
        ]),
        sep="\n",
    )  # fmt: skip


def _table(title: str, head: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in head.split(", "):
        table.add_column(name, justify="right" if name != head.split(", ")[0] else "left")
    for row in rows:
        table.add_row(*row)
    return table
