"""What `inrun train` says before its first step and after its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inrun.cli._terminal import Cells, Terminal, command, plain


def introduce(console: Terminal, training: Any) -> None:
    """Task, model, rows and steps, and which rows are left out."""
    config, splits = training.config, training.splits
    console.say(
        f"{config.task}: {config.model}, {len(splits.training)} training, "
        f"{len(training.judges())} validation and {len(splits.test)} test rows"
        + (f", {len(splits.classes)} classes" if splits.classes else "")
        + f"; {training.steps()} steps on {training.device}"
    )
    judging = {sample.label for sample in training.judges()}
    if nobody := [name for name in splits.classes if name not in judging]:
        rows = sum(sample.label in nobody for sample in splits.training)
        console.say(
            f"No validation row has the label {', '.join(nobody[:5])}"
            + (f" and {len(nobody) - 5} more" if len(nobody) > 5 else "")
            + f": nothing can be said of {rows} of the {len(splits.training)} training rows. Give "
            "--validation rows of every class.",
            style="yellow",
        )
    left_out = list(splits.skipped[:5])
    if len(splits.skipped) > 5:
        left_out.append(f"{len(splits.skipped) - 5} more")
    console.say(*(f"left out: {line}" for line in left_out), style="yellow")


def finish(console: Terminal, training: Any, folder: Path, outcome: Any) -> None:
    """What it took, how well it did, what the books say, how far to rely on the ranking."""
    from inrun.ledger import load_run
    from inrun.uses import agreement, note_label_doubts

    run = load_run(folder)
    doubted = note_label_doubts(run)
    name = training.task.objective.score
    console.say(
        f"Trained {outcome.steps} steps in {outcome.seconds:.0f} s, of which attribution "
        f"+{outcome.overhead:.0%}. Test {name}: {abs(outcome.score):.4f}."
    )
    told = _books(run, training.config, outcome.steps)
    if run.ledger().num_rows:
        told += agreement(run).sentences()
    console.say(*told)
    if doubted is not None:
        console.print(_doubtful(run))
    console.say(
        f"Values are in {folder}. Next: {command('inrun', 'report', folder)}, or "
        f"{command('inrun', 'prune', folder)}"
    )


def _books(run: Any, config: Any, steps: int) -> list[str]:
    """What the books say, by what kind of run it was."""
    import numpy as np

    from inrun.ledger import known_residual_shares, relative_error

    ledger = run.ledger()
    if not ledger.num_rows:
        return [f"None of the {steps} steps was drawn to be scored: there are no values."]
    shares = known_residual_shares(ledger)
    if not shares.size:
        why = next((note for note in ledger["note"].to_pylist() if note), "no loss was measured")
        said = [f"Books: the residual is not known: {why}."]
    else:
        share = np.median(shares)
        said = [f"Books: a step's residual is {share:.2%} of its entries in the median."]
    if run.extra == "standard_error":
        values = run.values()
        error = relative_error(values["value"].to_numpy(), values["standard_error"].to_numpy() ** 2)
        said.append(
            f"Scored {ledger.num_rows} of {steps} steps: the standard error of a row's total is "
            f"{error:.0%} of its size."
        )
    if run.extra == "paid_out":
        found = run.balance()
        said.append(
            f"Samples took off {found['immediate']:.4g} in their own steps and "
            f"{found['paid_out']:.4g} through momentum in the {config.momentum_window} after; "
            f"{found['before_window']:.4g} came from before that window."
        )
    return said


def _doubtful(run: Any, rows: int = 5) -> Any:
    """The labels that look most wrong."""
    import pyarrow.compute as pc

    samples = run.samples().sort_by("doubt_rank")
    names = ("sample", "labelled", "rather", "content")
    table = Cells(*names, title="Labels to look at first")
    seen = samples.filter(pc.is_valid(samples["doubt_rank"]))  # some were in no scored step
    for row in seen.slice(0, rows).to_pylist():
        content = row.get("text") or row.get("file") or ""
        table.add_row(
            plain(row["sample_id"]), _short(row["label"]), _short(row["suggested_label"]),
            plain(str(content)[:60]),
        )  # fmt: skip
    return table


def _short(label: Any) -> str:
    return plain(f"{label:.4g}" if isinstance(label, float) else str(label))
