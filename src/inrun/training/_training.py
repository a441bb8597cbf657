"""A configured training, ready to be run or asked again: data, model, losses, batches, utility."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from inrun.errors import MisuseError, StoreError
from inrun.replay import Trajectory, open_trajectory
from inrun.training._config import TrainConfig, read_config
from inrun.training._loading import Batch
from inrun.training._rows import Row
from inrun.training._samples import Id, Sample, Splits, read_splits
from inrun.training._task import Task, task_of
from inrun.utility import Utility

MOST_CLASSES = 20  # beyond it the validation set is one target: each costs a pass a step
MODEL, TRAJECTORY = "model", "trajectory"  # folders in a run's
SCORED_AT_ONCE = 64


class Training:
    """What a configuration stands for.

        training = open_training("RUN")
        model = training.trained()                       # as the run left it
        loss = training.loss_fn(model, training.fetch([0, 1]))

    Raises:
        MisuseError: data or model cannot be read.
        NotSupportedError: a package is missing.
    """

    def __init__(self, config: TrainConfig, folder: Path | None = None):
        self.config, self.folder = config, folder
        self.splits: Splits = read_splits(config)
        self.task: Task = task_of(config, self.splits.classes, self.splits.training)
        self.device = _device(config.device)
        self._by_id = {sample.id: sample for sample in self.splits.training}
        self.loss_fn, self.losses, self.weights = (
            self.task.loss_fn, self.task.losses, self.task.weights
        )  # fmt: skip

    # ---- data

    @property
    def ids(self) -> list[Id]:
        """Of the training samples, in their order."""
        return list(self._by_id)

    def fetch(self, ids: Collection[Any]) -> Batch:
        """Training samples by id, as one batch on the device.

        Raises:
            MisuseError: an id that is in no training row.
        """
        try:
            return self.collate([self._by_id[i] for i in ids])
        except KeyError as error:
            raise MisuseError(f"No training row has the id {error.args[0]!r}.") from None

    def contents(self, ids: Collection[Any]) -> list[Any]:
        """Training samples' texts or images by id."""
        return [self._by_id[i].content for i in ids]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch on the device."""
        return {name: t.to(self.device) for name, t in self.task.collate(samples).items()}

    def texts(self, texts: Sequence[str]) -> Batch:
        """New texts as a batch for a language model: for instance a query to be traced.

        Raises:
            MisuseError: the task is not 'causal-lm'.
        """
        if self.config.task != "causal-lm":
            raise MisuseError(
                f"The run's task is {self.config.task}, whose loss needs labels: make samples and "
                "call collate()."
            )
        samples = [Sample(i, text, None, self.splits.training[0].row) for i, text in
                   enumerate(texts)]  # fmt: skip
        return self.collate(samples)

    def query(self, row: Mapping[str, Any]) -> Batch:
        """One new row, as a batch: its text or image, and its label where the task has labels.

        Raises:
            MisuseError: the row lacks a column that the run's own rows have.
        """
        config = self.config
        image, labelled = config.task == "image-classification", bool(self.splits.classes)
        content = "image" if image else config.text_column
        cells = {content: row.get("text")} | dict(row)
        wanted = [content, *([config.label_column] if labelled else [])]
        missing = [name for name in wanted if cells.get(name) is None]
        if missing:
            raise MisuseError(
                f"The query has no {missing[0]!r}, and the loss of {config.task} needs it. Pass a "
                f"file with the columns {', '.join(wanted)}, a row a query."
            )
        label = str(cells[config.label_column]).strip() if labelled else None
        if labelled and label not in self.splits.classes:
            raise MisuseError(
                f"The query's label {label!r} is not one of {', '.join(self.splits.classes)}."
            )
        origin = Row(dict(row), "the query")
        return self.collate([Sample(0, cells[content], label, origin)])

    def judges(self) -> list[Sample]:
        """The validation samples that every step is judged by, as evenly from classes as can be."""
        config, found = self.config, list(self.splits.validation)
        if len(found) <= config.validation_rows:
            return found
        order = np.random.default_rng(config.seed).permutation(len(found)).tolist()
        turn: dict[str, int] = {}
        ranked = []
        for i in order:
            name = self._target_name(found[i])
            turn[name] = turn.get(name, 0) + 1
            ranked.append((turn[name], i))
        chosen = sorted(i for _, i in sorted(ranked)[: config.validation_rows])
        return [found[i] for i in chosen]

    def _target_name(self, sample: Sample) -> str:
        if self.config.target_column is not None:
            return str(sample.row.cells.get(self.config.target_column))
        return str(sample.label) if 2 <= len(self.splits.classes) <= MOST_CLASSES else "validation"

    def utility(self) -> Utility:
        """The whole validation loss, by target."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.judges():
            groups.setdefault(self._target_name(sample), []).append(sample)
        if len(groups) == 1:
            return Utility(self.loss_fn, self.collate(next(iter(groups.values()))))
        targets = {_safe(name): self.collate(groups[name]) for name in sorted(groups)}
        return Utility(self.loss_fn, targets=targets)

    def judged_by(self) -> Utility:
        """What the run's steps are judged by: `utility()`, whose rows can be dealt out.

        Raises:
            MisuseError: a target has fewer rows than there are to be parts.
        """
        whole = self.utility()
        whole.dealt(self.config.rotating)  # raises here what attaching would
        return whole

    # ---- model

    def start(self, seed: int | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step; both from the seed alone."""
        torch.manual_seed(self.config.seed if seed is None else seed)
        model = self.task.build().to(self.device).train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=self.config.rate,
            weight_decay=self.config.weight_decay,
        )
        return model, optimizer

    def trained(self) -> nn.Module:
        """The model as the run left it, in evaluation mode.

        Raises:
            StoreError: the run was not finished.
        """
        folder = None if self.folder is None else self.folder / MODEL
        if folder is None or not folder.exists():
            raise StoreError(
                f"{self.folder} holds no trained model: its training was not finished. "
                "`inrun train --resume` goes on with it."
            )
        return self.task.load(folder).to(self.device).eval()

    def trajectory(self) -> Trajectory:
        """The recorded run, for `inrun.lookahead`.

        Raises:
            StoreError: it was not recorded (`--record`), or not to its end.
        """
        if self.folder is None or not (self.folder / TRAJECTORY).exists():
            raise StoreError(
                f"{self.folder} holds no recorded trajectory. Train with --record to look ahead."
            )
        model, optimizer = self.start()
        return open_trajectory(
            self.folder / TRAJECTORY, model, optimizer, self.losses, self.fetch,
            weights=self.weights,
        )  # fmt: skip

    # ---- order

    def batches(
        self, ids: Sequence[Id] | None = None, seed: int | None = None
    ) -> Iterator[list[list[Id]]]:
        """The steps: for each the ids of its micro-batches. An epoch's order is from the seed."""
        config, rows = self.config, self.ids if ids is None else list(ids)
        size = config.batch * config.accumulate
        for epoch in range(config.epochs):
            rng = np.random.default_rng([config.seed if seed is None else seed, epoch])
            order = [rows[i] for i in rng.permutation(len(rows))]
            for begin in range(0, len(order), size):
                step = order[begin : begin + size]
                yield [step[i : i + config.batch] for i in range(0, len(step), config.batch)]

    def steps(self, rows: int | None = None) -> int:
        """How many optimizer steps there are."""
        rows = len(self._by_id) if rows is None else rows
        return self.config.epochs * -(-rows // (self.config.batch * self.config.accumulate))

    def scheduler(
        self, optimizer: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate: rises over the warm-up, falls linearly to 0 at the end."""
        warm = round(self.config.warmup * steps)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            return (steps - step) / max(1, steps - warm)

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    # ---- again

    def train_again(self, ids: Sequence[Id], seed: int) -> float:
        """Plain training on some of the samples from another start; what `check_pruning` takes.

        Args:
            ids: of the samples to train on.
            seed: of start and order.

        Returns:
            The mean score on the test samples: accuracy, or minus the loss of a text's tokens.
        """
        model, optimizer = self.start(1000 + seed)
        schedule = self.scheduler(optimizer, self.steps(len(ids)))
        for parts in self.batches(ids, 1000 + seed):
            for batch, share in self.weighted(parts):
                (self.loss_fn(model, batch) * share).backward()
            self.clip(model)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return self.score(model)

    def weighted(self, parts: Sequence[Sequence[Id]]) -> list[tuple[Batch, float]]:
        """A step's batches, each with its share of the step's weight."""
        batches = [self.fetch(ids) for ids in parts]
        if len(batches) == 1:
            return [(batches[0], 1.0)]
        weights = [float(self.weights(batch).sum()) for batch in batches]
        return [(b, w / max(sum(weights), 1.0)) for b, w in zip(batches, weights, strict=True)]

    def clip(self, model: nn.Module) -> None:
        """Clips the gradient's norm, where the configuration says so."""
        if self.config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), self.config.clip)

    def score(self, model: nn.Module, samples: Sequence[Sample] | None = None) -> float:
        """Mean score over the test samples, or over others."""
        samples = self.splits.test if samples is None else samples
        was_training, found = model.training, []
        model.eval()
        with torch.no_grad():
            for begin in range(0, len(samples), SCORED_AT_ONCE):
                batch = self.collate(samples[begin : begin + SCORED_AT_ONCE])
                found += self.task.score(model, batch).tolist()
        model.train(was_training)
        return float(np.mean(found)) if found else float("nan")


def open_training(run: str | Path) -> Training:
    """The training behind a run's folder, written by `inrun train`.

    Raises:
        StoreError: the folder has no configuration.
        MisuseError: data or model are not where they were.
    """
    folder = Path(run)
    return Training(read_config(folder), folder)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise MisuseError(f"device {name!r} is none that PyTorch knows: {error}") from error


_TAKEN = {"total", "step", "sample_id", "value", "value_normalised", "visits"}


def _safe(name: str) -> str:
    """A class called like a column of the tables gets a name beside it."""
    return f"class {name}" if name in _TAKEN else name
