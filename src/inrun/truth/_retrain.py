"""Leave-one-out by training again: what look-ahead estimates, measured.

    value_i = V(trained without i) - V(trained with all),    positive: the sample helped

Same start, same order, same random numbers. One training a sample: slow, and the only judge.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from inrun.errors import MisuseError, StoreError
from inrun.utility import Utility, losses_of


class Retrainable(Protocol):
    """A run that can be trained again without a sample, such as `inrun.Trajectory`."""

    def retrain(self, without: object, *, renormalise: bool) -> nn.Module:
        """The model as training ends without the sample."""

    def finished(self) -> nn.Module:
        """The model as training ended."""


class _WithoutEach(Dataset[list[float]]):
    """Item i: the targets' losses after training without the i-th sample."""

    def __init__(
        self, run: Retrainable, utility: Utility, samples: Sequence[object], renormalise: bool
    ):
        self._run, self._utility, self._samples = run, utility, samples
        self._renormalise = renormalise

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> list[float]:
        model = self._run.retrain(self._samples[number], renormalise=self._renormalise)
        return [float(loss) for loss in losses_of(self._utility, model)]


def retrain(
    run: Retrainable,
    utility: Utility,
    samples: Sequence[Any],
    *,
    removal: str = "renormalise",
    processes: int = 0,
    store: str | os.PathLike[str] | None = None,
) -> pa.Table:
    """Trains again without each of the samples, and judges the model by the utility.

    Args:
        run: a recorded run.
        utility: the validation loss.
        samples: ids.
        removal: 'renormalise' (the mean over those that remain) or 'drop' (the others keep their
            weight), see `inrun.lookahead`.
        processes: how many train at a time; 0 trains in this one. They are forked, one thread each,
            so a run on a GPU takes 0.
        store: a file that keeps each sample's result as it comes; what is in it is not done again.

    Returns:
        `sample_id`, `value` in units of the validation loss (positive: without the sample the loss
        ends higher), and with several targets one column each; in the order of `samples`.

    Raises:
        StoreError: the file is of another question.
        MisuseError: no such removal, a sample that was not visited, or processes on a GPU.
    """
    if removal not in ("renormalise", "drop"):
        raise MisuseError(f"removal {removal!r} is not one of renormalise, drop.")
    model = run.finished()
    if processes and any(p.device.type != "cpu" for p in model.parameters()):
        raise MisuseError("Forked processes cannot share a GPU's context: use processes=0.")
    full = [float(loss) for loss in losses_of(utility, model)]
    known = _Results(store, {"removal": removal, "targets": list(utility.targets), "full": full})
    left = [sample for sample in samples if sample not in known.losses]
    work = _WithoutEach(run, utility, left, removal == "renormalise")
    for sample, losses in zip(left, _run_through(work, processes), strict=True):
        known.add(sample, losses)
    gains = torch.tensor([known.losses[i] for i in samples], dtype=torch.float64)
    gains = gains.reshape(len(samples), len(full)) - torch.tensor(full, dtype=torch.float64)
    columns: dict[str, Any] = {
        "sample_id": list(samples),
        "value": (gains @ torch.tensor(utility.weights, dtype=torch.float64)).numpy(),
    }
    if len(full) > 1:
        columns |= {name: gains[:, k].numpy() for k, name in enumerate(utility.targets)}
    return pa.table(columns)


def _run_through(work: Dataset[list[float]], processes: int) -> Iterator[list[float]]:
    """Items in their order. A loader without batches is torch's own pool of processes."""
    yield from DataLoader(
        work, batch_size=None, num_workers=processes, collate_fn=list,
        multiprocessing_context="fork" if processes else None,
    )  # fmt: skip


class _Results:
    """Losses by sample, in memory and, a line a sample, in a file."""

    def __init__(self, path: str | os.PathLike[str] | None, question: dict[str, Any]):
        self._path = None if path is None else Path(path)
        self.losses: dict[Any, list[float]] = {}
        if self._path is None:
            return
        if not self._path.exists():
            self._write(question)
            return
        try:
            first, *lines = self._path.read_text(encoding="utf-8").splitlines()
            asked = json.loads(first)
            found = [json.loads(line) for line in lines]
        except ValueError as error:
            raise StoreError(
                f"{self._path} is torn ({error}): remove its last line to go on from there."
            ) from error
        near = torch.allclose(
            torch.tensor(asked.pop("full")), torch.tensor(question["full"]), rtol=1e-6
        )
        if asked != {k: v for k, v in question.items() if k != "full"} or not near:
            raise StoreError(
                f"{self._path} holds results of another run, utility or removal. Name a new file."
            )
        self.losses = {line["sample"]: line["losses"] for line in found}

    def add(self, sample: Any, losses: list[float]) -> None:
        """Takes a result."""
        self.losses[sample] = losses
        if self._path is not None:
            self._write({"sample": sample, "losses": losses})

    def _write(self, line: dict[str, Any]) -> None:
        assert self._path is not None
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StoreError(f"{self._path} could not be written: {error}") from error
