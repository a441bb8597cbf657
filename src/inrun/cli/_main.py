"""The command's verbs."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

import inrun
from inrun.cli import _decisions, _explain, _prune, _trace, _train, _validate
from inrun.cli._terminal import Cells, plain, terminal
from inrun.errors import InRunError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold the data
    help="What each training sample did to a PyTorch model, while it trains.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        typer.echo(inrun.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the run and the report.")] = Path(
        "inrun-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of the split, the wrong labels and the run.")] = 0,
    seeds: Annotated[int, typer.Option(min=2, help="Repetitions of each retraining.")] = 5,
) -> None:
    """Find the wrong labels among handwritten digits: about a minute, ends with a report."""
    from inrun.demo import run_demo

    run_demo(out, seed=seed, seeds=seeds, console=terminal())


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A run's folder, written by attach(store=...).")],
) -> None:
    """How far a run's values can be trusted: its audit, in numbers and words."""
    from inrun.truth import report

    checks = inrun.load(run).audit()
    console = terminal()
    table = Cells("step", "estimator", "groups", "R", "sum ratio", "error", "residual")
    for check in checks.to_pylist():
        numbers = [f"{check['pearson']:.4f}", f"{check['sum_ratio']:.3f}"]
        shares = [
            f"{check[name]:.2%}" if check[name] == check[name] else "not known"  # NaN
            for name in ("relative_error", "residual")
        ]
        table.add_row(
            str(check["step"]), plain(check["estimator"]), str(check["players"]), *numbers, *shares
        )
    console.print(table)
    console.say(report(checks))


app.command("train", no_args_is_help=True)(_train.train)
app.command("plan", no_args_is_help=True)(_train.plan)
for verb in (
    _decisions.report,
    _explain.explain,
    _decisions.diff,
    _prune.prune,
    _decisions.rollup,
    _trace.trace,
    _validate.validate,
):
    app.command()(verb)


def main() -> None:
    """Runs the command; the library's own errors are one readable line, with exit code 2."""
    warnings.showwarning = _show_warning
    try:
        app()
    except InRunError as error:
        terminal(stderr=True).print(
            f"[bold red]inrun:[/bold red] {plain(error)}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except Exception:  # a fault of the library's; what it says may quote the data too
        terminal(stderr=True).print(traceback.format_exc(), highlight=False, markup=False)
        sys.exit(1)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a line on the terminal, like everything else."""
    terminal(stderr=True).print(
        f"[bold yellow]inrun:[/bold yellow] {plain(message)}", highlight=False, soft_wrap=True
    )
