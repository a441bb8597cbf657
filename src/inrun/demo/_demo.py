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
from inrun.demo._experiment import Tick, Trained, train
from inrun.demo._findings import BEST, DROPPED_SHARE, Findings, findings, retrained
from inrun.demo._page import describe, write_page
from inrun.errors import StoreError
from inrun.ledger import known_residual_shares, load_run
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
        "digits, one target a class."
    )
    steps = digits.EPOCHS * -(-digits.TRAINING // digits.BATCH)
    with _progress(console, steps, 7 * seeds) as tick:
        trained = train(data, seed, out / "run", tick, progress=False)
        found = findings(data, trained)
        retraining = retrained(data, found, range(seeds), tick)
    _print_summary(console, data, trained, found, retraining)
    report = out / "report.html"
    run = load_run(out / "run")
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
    data: digits.Digits,
    trained: Trained,
    found: Findings,
    retraining: dict[str, list[float]],
) -> None:
    shares = known_residual_shares(trained.ledger)
    console.print(
        f"\n[bold]Wrong labels[/bold]  inrun.label_doubts finds them with AUC "
        f"{found.auc[BEST]:.3f} and names the true label of {found.right_suggestions:.0%}"
    )
    console.print(_detection_table(found))
    console.print(_harmful_table(data, found))
    console.print(
        f"[bold]Books[/bold]  a step's residual is {np.median(shares):.2%} of its entries in the "
        f"median, {shares.max():.1%} at most"
    )
    audit = trained.report
    console.print(
        f"[bold]Truth[/bold]  Pearson R with exact Shapley values {audit.pearson:.4f} (median over "
        f"{audit.checks} random steps of this run, 95 % interval): `inrun audit RUN` says more"
    )
    console.print(
        f"[bold]Cost[/bold]   attribution took {trained.overhead:.1f} times the plain training's "
        f"time ({trained.seconds:.1f} s in all): every step passes {len(data.validation[1])} "
        f"validation images, for a batch of {digits.BATCH}"
    )
    console.print(_retraining_table(retraining))


def _detection_table(found: Findings) -> Table:
    table = Table(title="AUC for wrong labels", title_justify="left")
    table.add_column("ranked by")
    table.add_column("AUC", justify="right")
    for name, auc in sorted(found.auc.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{auc:.3f}")
    return table


def _harmful_table(data: digits.Digits, found: Findings, rows: int = 8) -> Table:
    table = Table(title="Labels to look at first", title_justify="left")
    for name in ("sample", "labelled", "suggested", "truly", "doubt"):
        table.add_column(name, justify="right")
    for i in found.best_first[:rows]:
        table.add_row(
            str(i),
            str(int(data.labels[i])),
            str(int(found.suggested[i])),
            str(int(data.truth[i])),
            f"{found.scores[BEST][i]:.3f}",
        )
    return table


def _retraining_table(retraining: dict[str, list[float]]) -> Table:
    table = Table(
        title=f"Test accuracy after retraining, {DROPPED_SHARE:.0%} dropped (mean, 95 % interval)",
        title_justify="left",
    )
    table.add_column("trained on")
    table.add_column("accuracy", justify="right")
    for name, numbers in sorted(retraining.items(), key=lambda item: -float(np.mean(item[1]))):
        half = charts.half_interval(np.asarray(numbers))
        table.add_row(name, f"{np.mean(numbers):.1%} ± {half:.1%}")
    return table
