"""`inrun train` and `inrun plan`: the same options, one trains and one says what it will take."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from inrun.cli._concluded import conclude, introduce
from inrun.cli._terminal import plain, terminal

DATA = (
    "Training rows: a CSV, JSONL or Parquet file, a saved `datasets` folder, a folder of images, "
    "or a hub name."
)

Model = Annotated[
    str | None,
    typer.Option(help="A folder or hub name that transformers loads; for images also 'cnn'."),
]
Data = Annotated[str | None, typer.Option(help=DATA)]
Part = Annotated[str | None, typer.Option(help="The same; else a tenth of the rows is split off.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="text-classification, causal-lm or image-classification; else seen from the data.",
    ),
]
Scratch = Annotated[
    bool | None, typer.Option("--from-scratch", help="Draw the weights; needs config.json only.")
]
Name = Annotated[str | None, typer.Option(help="Where it is not the model's own.")]
TextColumn = Annotated[str | None, typer.Option(help="Default: text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Default: label.")]
IdColumn = Annotated[str | None, typer.Option(help="Default: row numbers.")]
SourceColumn = Annotated[str | None, typer.Option(help="Who provided a row, for `inrun rollup`.")]
TargetColumn = Annotated[
    str | None, typer.Option(help="Of the validation rows: a target each. Default: the classes.")
]
Rows = Annotated[int | None, typer.Option(help="Most that are passed in each step. Default: 200.")]
Length = Annotated[int | None, typer.Option(help="Tokens of a text. Default: 128.")]
Lora = Annotated[int | None, typer.Option(help="Rank of LoRA; 0 trains all weights (default).")]
Epochs = Annotated[int | None, typer.Option(help="Default: 3.")]
Batch = Annotated[int | None, typer.Option(help="Rows of a forward pass. Default: 16.")]
Accumulate = Annotated[int | None, typer.Option(help="Passes of a step. Default: 1.")]
Rate = Annotated[
    float | None,
    typer.Option(help="Default: 5e-5 for pretrained weights, 2e-4 for LoRA, 1e-3 from scratch."),
]
Decay = Annotated[float | None, typer.Option(help="Default: 0.01.")]
Warmup = Annotated[float | None, typer.Option(help="Share of the steps. Default: 0.05.")]
Clip = Annotated[float | None, typer.Option(help="Gradient norm; 0 does not. Default: 1.")]
Seed = Annotated[int | None, typer.Option(help="Of start, order and split. Default: 0.")]
Device = Annotated[str | None, typer.Option(help="Default: cuda where there is one, else cpu.")]
Estimator = Annotated[str | None, typer.Option(help="See docs/methods.md. Default: path.")]
Capture = Annotated[str | None, typer.Option(help="hold (default), offload or stream.")]
Contraction = Annotated[str | None, typer.Option(help="auto (default) or dense.")]
Payout = Annotated[
    int | None,
    typer.Option(
        help="Steps for which samples are also given what momentum does for them. Default: 0."
    ),
]
PayoutTo = Annotated[
    str | None, typer.Option(help="Where they wait: cpu, or a folder. Default: as --capture.")
]
Scored = Annotated[
    float | None,
    typer.Option(help="Score one random step in so many; below 1, this share. Default: 1, all."),
]
Overhead = Annotated[
    float | None,
    typer.Option(help="Score as many as this share of the training's time pays for: 0.1 for 10 %."),
]
Rotating = Annotated[
    int | None, typer.Option(help="Each validation pass looks at one of so many parts. Default: 1.")
]
Tokens = Annotated[bool | None, typer.Option("--keep-tokens", help="Values a token (causal-lm).")]
Record = Annotated[bool | None, typer.Option("--record", help="Keep the run for look-ahead.")]
Every = Annotated[float | None, typer.Option(help="Seconds between checkpoints. Default: 60.")]
Skip = Annotated[
    bool | None, typer.Option("--skip-bad-rows", help="Leave them out instead of stopping.")
]
Pictures = Annotated[
    str | None,
    typer.Option(help="Where files lie that rows name. Default: the data's own folder alone."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Do as this config.json says; other options go before it."),
]
Out = Annotated[Path, typer.Option(help="A new folder for everything that the run leaves.")]


SHARED: dict[str, Any] = {
    "model": Model, "data": Data, "validation": Part, "test": Part,
    "config": ConfigFile, "task": TaskName, "text_column": TextColumn,
    "label_column": LabelColumn, "id_column": IdColumn, "source_column": SourceColumn,
    "target_column": TargetColumn, "validation_rows": Rows, "from_scratch": Scratch,
    "tokenizer": Name, "max_length": Length, "lora": Lora, "epochs": Epochs, "batch": Batch,
    "accumulate": Accumulate, "learning_rate": Rate, "weight_decay": Decay, "warmup": Warmup,
    "clip": Clip, "seed": Seed, "device": Device, "estimator": Estimator, "capture": Capture,
    "contraction": Contraction, "payout": Payout, "payout_to": PayoutTo, "every": Scored,
    "max_overhead": Overhead, "rotating": Rotating,
    "keep_tokens": Tokens, "record": Record, "save_every": Every, "skip_bad_rows": Skip,
    "pictures": Pictures,
}  # fmt: skip
"""What `train` and `plan` both take; None where it was not given."""
FIRST = 4  # of them stand before the verb's own options in its help


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
    out: Out = Path("inrun-run"),
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
    Cheaper, by scoring random steps, for a tenth of the training's time:
      inrun train --model PATH --data train.csv --max-overhead 0.1
    What momentum does for a row later goes to the row too (finds wrong labels better):
      inrun train --model PATH --data train.csv --payout 20
    Go on after a cut:
      inrun train --resume inrun-run
    """  # noqa: D301 (typer keeps the lines that follow \b)
    from inrun.training import (
        CHECKPOINT,
        Training,
        TrainingInterrupt,
        read_config,
        run_training,
    )

    console = terminal()
    folder = out if resume is None else resume
    setting = _setting(options) if resume is None else read_config(resume)
    setting.demand_place()
    training = Training(setting, folder)
    introduce(console, training)
    try:
        outcome = run_training(training, folder, console, resume=resume is not None)
    except TrainingInterrupt as cut:
        console.print(f"\nStopped {plain(cut)}.")
        if (folder / CHECKPOINT).exists():
            console.print(f"Go on with: inrun train --resume {plain(folder)}")
        sys.exit(130)
    conclude(console, training, folder, outcome)


@_with_shared
def plan(
    *,
    out: Annotated[
        Path | None, typer.Option(help="The folder that `inrun train` will be given: compares.")
    ] = None,
    **options: Any,
) -> None:
    """Say what `inrun train` with the same options will take: time, memory and disk.

    A few steps are trained on this machine, with attribution and without, and thrown away. With
    --out RUN the plan is kept there, and compared with what was measured once RUN is trained.
    """
    from inrun.training import Training, plan_training, read_comparison

    console = terminal()
    if out is not None and (out / "measured.json").exists():
        console.print(read_comparison(out))
        return
    setting = _setting(options)
    setting.demand_place()
    made = plan_training(Training(setting))
    console.print(made.table(), made.advice(), sep="\n")
    if out is not None:
        made.write(out)
        console.print(f"Kept in {plain(out)}. After training: inrun plan --out {plain(out)}")


def _setting(options: dict[str, Any]) -> Any:
    """The configuration that options, or a file and options before it, stand for."""
    from inrun.errors import MisuseError
    from inrun.training import TrainConfig, read_config, task_seen

    file = options.pop("config")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("model", "data", "validation", "test", "tokenizer", "payout_to", "pictures"):
        if name == "payout_to" and given.get(name) == "cpu":
            continue  # a device, even where a folder is called so
        if name in given and Path(given[name]).exists():  # found again from any folder
            given[name] = str(Path(given[name]).resolve())
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
        given["task"] = task_seen(given["data"], given.get("label_column", "label"))
    return TrainConfig(**given)
