"""Experiment trackers that the user has configured: scalars, and the table of worst samples.

Nothing is started here: weights-and-biases and mlflow get what belongs to the run that is active,
tensorboard a run `inrun` in the folder that it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa


class Tracker(Protocol):
    """Takes numbers and a table."""

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Takes numbers of a step."""

    def table(self, name: str, table: pa.Table, step: int) -> None:
        """Takes a table."""


class TensorBoard:
    """A SummaryWriter: one that is there, or one of our own in a folder."""

    def __init__(self, writer: Any):
        self._writer = writer

    @classmethod
    def in_folder(cls, folder: Path) -> TensorBoard:
        """A writer of our own."""
        from torch.utils.tensorboard import SummaryWriter

        return cls(SummaryWriter(str(folder)))

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Adds a point to each number's curve."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def table(self, name: str, table: pa.Table, step: int) -> None:
        """See `Tracker`; as text, since there are no tables."""
        lines = ["| " + " | ".join(table.column_names) + " |", "|---" * table.num_columns + "|"]
        lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in table.to_pylist()]
        self._writer.add_text(name, "\n".join(lines), step)
        self._writer.flush()


class WeightsAndBiases:
    """The active wandb run."""

    def __init__(self, wandb: Any):
        self._wandb = wandb

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Logs the numbers at this step."""
        self._wandb.log({**numbers, "train/global_step": step})

    def table(self, name: str, table: pa.Table, step: int) -> None:
        """Logs it as a table of wandb."""
        rows = [list(row.values()) for row in table.to_pylist()]
        shown = self._wandb.Table(columns=table.column_names, data=rows)
        self._wandb.log({name: shown, "train/global_step": step})


class MLflow:
    """The active mlflow run, or a client and one of its runs."""

    def __init__(self, mlflow: Any, run: str | None = None):
        self._mlflow = mlflow
        self._run = () if run is None else (run,)  # a client is told the run with every call

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Logs the numbers as metrics of this step."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def table(self, name: str, table: pa.Table, step: int) -> None:
        """Logs it as a table among the run's artifacts."""
        self._mlflow.log_table(*self._run, table.to_pydict(), f"{name}-{step}.json")


def configured(report_to: Iterable[str], folder: Path) -> list[Tracker]:
    """The trackers among `report_to` that can be reached.

    Args:
        report_to: names, as `transformers` has them.
        folder: for tensorboard.
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
