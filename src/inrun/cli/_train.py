"""`inrun train` and `inrun plan`: the same options, one trains and one says what it will take."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
import typer

from inrun.cli._terminal import Cells, Terminal, command, heard, plain, terminal
from inrun.errors import MisuseError
from inrun.ledger import known_residual_shares, load_run, relative_error
from inrun.training import TrainConfig, Training, read_config, task_seen
from inrun.uses import agreement, note_label_doubts

PATHS = ("model", "data", "validation", "test", "tokenizer", "held_in", "pictures")
FIRST = 4  # shared options that stand before the verb's own in its help
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Do as this config.json says; other options go before it."),
]


def _options() -> dict[str, Any]:
    """An option for each setting, None where it was not given, and one for a file of them."""
    kinds = typing.get_type_hints(TrainConfig)
    made: dict[str, Any] = {}
    for setting in dataclasses.fields(TrainConfig):
        text, default = setting.metadata["help"], setting.default
        if default not in (dataclasses.MISSING, None, False) and "efault" not in text:
            text += f" Default: {default}."
        flag = kinds[setting.name] is bool
        names = [f"--{setting.name.replace('_', '-')}"] if flag else []  # without a --no- twin
        kind = list[str] if setting.name == "trainer" else kinds[setting.name]
        made[setting.name] = Annotated[kind | None, typer.Option(*names, help=text)]
    first = ("model", "data", "validation", "test")
    return {name: made[name] for name in first} | {"config": ConfigFile} | made


SHARED = _options()
"""What `train` and `plan` both take."""


def _with_shared(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the shared options in its signature, which typer reads."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(n, keyword, default=None, annotation=a) for n, a in SHARED.items()]
    found = inspect.signature(verb, eval_str=True).parameters.values()
    own = [p for p in found if p.kind is keyword]
    signature = inspect.Signature([*shared[:FIRST], *own, *shared[FIRST:]])
    verb.__signature__ = signature  # type: ignore[attr-defined]
    return verb


@_with_shared
def train(
    *,
    out: Annotated[
        Path, typer.Option(help="A new folder for everything that the run leaves.")
    ] = Path("inrun-run"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder; takes nothing else.")
    ] = None,
    **options: Any,
) -> None:
    """Train a model on your own rows and learn what each row did to it.

    \b
    Texts with labels:
      inrun train --model PATH --data train.csv --text-column review --label-column stars
    A language model, with LoRA, a value for every token:
      inrun train --model PATH --data train.jsonl --task causal-lm --lora 8 --keep-tokens
    A folder of images, one folder a class:
      inrun train --model cnn --data pictures --epochs 10
    Cheaper, by scoring random steps, for a twentieth of the training's time:
      inrun train --model PATH --data train.csv --budget 0.05
    What momentum does for a row later goes to the row too (finds wrong labels better):
      inrun train --model PATH --data train.csv --momentum-window 20
    Half precision and a tracker, as the Trainer of transformers has them:
      inrun train --model PATH --data train.csv --trainer bf16=true --trainer report_to=tensorboard
    On two GPUs:
      torchrun --no-python --nproc-per-node 2 inrun train --model PATH --data train.csv
    Go on after a cut:
      inrun train --resume inrun-run
    """  # noqa: D301 (typer keeps the lines that follow \b)
    console = terminal()
    console.quiet = os.environ.get("RANK", "0") != "0"  # one process speaks for all
    folder = out if resume is None else resume
    setting = _setting(options) if resume is None else read_config(resume)
    with heard(console, "loading the model and the rows") as at:
        _trained(console, setting, folder, resume is not None, at)


def _trained(
    console: Terminal, setting: TrainConfig, folder: Path, resume: bool, at: Callable[[str], None]
) -> None:
    """Trains, or goes on, and says what came of it; `at` is told what it is doing."""
    from inrun.training import TrainingInterrupt, has_checkpoint, require_new, run_training

    setting.require_place()
    if not resume:
        require_new(folder)
    training = Training(setting, folder)
    introduce(console, training)
    try:
        outcome = run_training(training, folder, console, resume=resume, at=at)
    except TrainingInterrupt as cut:
        console.say(f"\nStopped {cut}.")
        if has_checkpoint(folder):
            console.say(f"Go on with: {command('inrun', 'train', '--resume', folder)}")
        sys.exit(130)
    if not console.quiet:
        at("looking for doubtful labels")
        _finish(console, training, folder, outcome)


@_with_shared
def plan(**options: Any) -> None:
    """Say what `inrun train` with the same options will take: time, memory and disk.

    A few steps are trained on this machine, with attribution and without, and thrown away.
    """
    setting = _setting(options)
    setting.require_place()
    training = Training(setting)
    from inrun.training import plan_training

    console = terminal()
    introduce(console, training)
    made = plan_training(training, console.say)
    console.print(made.table(), made.advice(), sep="\n")


def _setting(options: dict[str, Any]) -> TrainConfig:
    """The configuration that options, or a file and options before it, stand for."""
    file = options.pop("config")
    given = {name: value for name, value in options.items() if value is not None}
    if "trainer" in given:
        given["trainer"] = dict(map(_argument, given["trainer"]))
    for name in PATHS:
        device = name == "held_in" and given.get(name) == "cpu"  # even where a folder is called so
        if name in given and not device and Path(given[name]).exists():
            given[name] = str(Path(given[name]).resolve())  # found again from any folder
    if file is not None:
        return dataclasses.replace(read_config(file), **given)
    missing = [f"--{name}" for name in ("model", "data") if name not in given]
    if missing:
        raise MisuseError(
            f"{' and '.join(missing)} must be given: which model to train, on which rows. "
            "`inrun train --help` shows examples."
        )
    if "task" not in given:
        TrainConfig(**given, task="causal-lm")  # what excludes each other, before data is looked at
        given["task"], why = task_seen(given["data"], given.get("label_column"))
        terminal().say(
            f"Task: {given['task']}, seen by {why} in {given['data']}; --task names another."
        )
    return TrainConfig(**given)


def _argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, where a value is JSON or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise MisuseError(f"--trainer {text!r} must read NAME=VALUE, as in bf16=true.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


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


def _finish(console: Terminal, training: Any, folder: Path, outcome: Any) -> None:
    """What it took, how well it did, what the books say, how far to rely on the ranking."""
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
