"""What an attribution has to say within a framework's training: scalars, tables, files, trackers.

Of experiment trackers nothing is started here: weights-and-biases and mlflow get what belongs to
the run that is active, tensorboard a run `inrun` in the folder that it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from math import isnan
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from inrun.attribution import Attribution
from inrun.errors import StoreError
from inrun.ledger import ENTRIES, read_state, write_state

STATE = "inrun.safetensors"
VALUES = "inrun-values.parquet"
LEDGER = "inrun-ledger.parquet"


def scalars(attribution: Attribution) -> dict[str, float]:
    """The last scored step in numbers, by the names that trackers show; none before the first.

    What is not known (losses, where no pass was run) is left out.
    """
    row = attribution.latest
    if not row:
        return {}
    names = ("closing_loss", *ENTRIES, "residual")
    numbers = {f"inrun/{name}": float(row[name]) for name in names}
    numbers |= {
        "inrun/residual_share": attribution.residual_share,
        "inrun/overhead": attribution.overhead,
    }
    return {name: number for name, number in numbers.items() if not isnan(number)}


def show_worst(attribution: Attribution, trackers: list[Tracker], step: int) -> None:
    """The table of worst samples, to every tracker."""
    table = worst(attribution.values())
    for tracker in trackers:
        tracker.table("inrun/worst_samples", table, step)


def write_checkpoint(attribution: Attribution, state: Mapping[str, Any], folder: Path) -> None:
    """The state, and the values so far, beside a framework's checkpoint."""
    write_state(folder / STATE, state)
    pq.write_table(attribution.values(), folder / VALUES)


def load_checkpoint(attribution: Attribution, folder: Path) -> None:
    """Goes on from the state beside a framework's checkpoint; StoreError where there is none."""
    if not (folder / STATE).exists():
        raise StoreError(
            f"{folder / STATE} is missing: the checkpoint was written without InRun, or the "
            "process was killed before it was, or it lies elsewhere (say where in the trainer's "
            "arguments, resume_from_checkpoint=...). Resume from a checkpoint that has it, or take "
            "the callback away."
        )
    attribution.load_state_dict(read_state(folder / STATE))


def write_result(attribution: Attribution, folder: Path) -> None:
    """Values and books, when training is over."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(attribution.values(), folder / VALUES)
    pq.write_table(attribution.ledger(), folder / LEDGER)


class Tracker(Protocol):
    """Takes numbers of a step, and a table."""

    def scalars(self, numbers: Mapping[str, float], step: int) -> None: ...

    def table(self, name: str, table: pa.Table, step: int) -> None: ...


class TensorBoard:
    """A SummaryWriter, one that is there or one of our own in a folder; tables are texts."""

    def __init__(self, writer: Any):
        self._writer = writer

    @classmethod
    def in_folder(cls, folder: Path) -> TensorBoard:
        from torch.utils.tensorboard import SummaryWriter

        return cls(SummaryWriter(str(folder)))

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def table(self, name: str, table: pa.Table, step: int) -> None:
        lines = ["| " + " | ".join(table.column_names) + " |", "|---" * table.num_columns + "|"]
        lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in table.to_pylist()]
        self._writer.add_text(name, "\n".join(lines), step)
        self._writer.flush()


class WeightsAndBiases:
    """The active wandb run."""

    def __init__(self, wandb: Any):
        self._wandb = wandb

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        self._wandb.log({**numbers, "train/global_step": step})

    def table(self, name: str, table: pa.Table, step: int) -> None:
        rows = [list(row.values()) for row in table.to_pylist()]
        shown = self._wandb.Table(columns=table.column_names, data=rows)
        self._wandb.log({name: shown, "train/global_step": step})


class MLflow:
    """The active mlflow run, or a client and one of its runs."""

    def __init__(self, mlflow: Any, run: str | None = None):
        self._mlflow = mlflow
        self._run = () if run is None else (run,)  # a client is told the run with every call

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def table(self, name: str, table: pa.Table, step: int) -> None:
        self._mlflow.log_table(*self._run, table.to_pydict(), f"{name}-{step}.json")


def configured(report_to: Iterable[str], folder: Path) -> list[Tracker]:
    """The trackers among these names (as `transformers` has them) that can be reached.

    `folder` is for tensorboard.
    """
    found: list[Tracker] = []
    names = set(report_to)
    if "tensorboard" in names:
        found.append(TensorBoard.in_folder(folder))
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    if "wandb" in names and wandb is not None and getattr(wandb, "run", None) is not None:
        found.append(WeightsAndBiases(wandb))
    if "mlflow" in names and mlflow is not None and mlflow.active_run() is not None:
        found.append(MLflow(mlflow))
    return found


def worst(values: pa.Table, count: int = 20) -> pa.Table:
    """The samples that put the validation loss up most, the most harmful first."""
    return values.sort_by("value").slice(0, count)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
