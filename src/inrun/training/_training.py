"""A configured training, ready to be run or asked again: data, model, losses, utility."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.errors import MisuseError, StoreError
from inrun.replay import Replayable, Trajectory, open_trajectory
from inrun.training._chats import task_of
from inrun.training._config import TrainConfig, read_config
from inrun.training._models import Task, transformers
from inrun.training._objectives import Batch, NextToken, SeveralClasses
from inrun.training._samples import Id, Sample, Splits, asked, read_splits
from inrun.training._targets import EACH, judges, utility_of
from inrun.training._texts import Texts
from inrun.utility import Utility

MODEL, TRAJECTORY = "model", "trajectory"  # folders in a run's
SCORED_AT_ONCE = 64


class Training:
    """What a configuration stands for.

        training = open_training("RUN")
        model = training.trained()                       # as the run left it
        loss = training.loss_fn(model, training.fetch([0, 1]))

    Raises:
        MisuseError: data or model cannot be read.
        MissingExtraError: a package is missing.
    """

    def __init__(self, config: TrainConfig, folder: Path | None = None):
        transformers()  # raises where it is missing, before any row is read
        from inrun.training._arguments import arguments_of

        self.config, self.folder = config, folder
        self.arguments: Any = arguments_of(config, Path(folder or "."))
        self.splits: Splits = read_splits(config)
        self.task: Task = task_of(config, self.splits.classes, self.splits.training)
        self.device: torch.device = self.arguments.device
        self._by_id = {sample.id: sample for sample in self.splits.training}
        splits = self.splits
        self._prepare([*splits.training, *splits.validation, *splits.test])

    # ---- data

    @property
    def ids(self) -> list[Id]:
        """Of the training samples, in their order."""
        return list(self._by_id)

    def samples(self, ids: Collection[Any]) -> list[Sample]:
        """Training samples by id.

        Raises:
            MisuseError: an id that is in no training row.
        """
        try:
            return [self._by_id[i] for i in ids]
        except KeyError as error:
            raise MisuseError(f"No training row has the id {error.args[0]!r}.") from None

    def fetch(self, ids: Collection[Any]) -> Batch:
        """Training samples by id, as one batch on the device; see `samples`."""
        return self.collate(self.samples(ids))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch on the device."""
        return {name: t.to(self.device) for name, t in self.task.collate(samples).items()}

    def query(self, row: Mapping[str, Any]) -> Batch:
        """One new row, as a batch: its text or image, and its label where the task has labels.

        Raises:
            MisuseError: the row lacks a column that the run's own rows have.
        """
        sample = asked(self.config, self.splits.classes, row)
        self._prepare([sample])
        return self.collate([sample])

    def _prepare(self, samples: Sequence[Sample]) -> None:
        with torch.random.fork_rng(devices=[]):
            self.task.prepare(samples, self.drawn)

    def pieces(self, ids: Collection[Any]) -> list[list[str]]:
        """The tokens of training texts, as text."""
        assert isinstance(self.task, Texts)
        return [self.task.pieces(sample) for sample in self.samples(ids)]

    def judges(self) -> list[Sample]:
        """The validation samples that each step is judged by."""
        return judges(self.config, self.splits)

    def utility(self) -> Utility:
        """The validation loss, by target."""
        return utility_of(self)

    # ---- labels

    @property
    def columns(self) -> tuple[str, ...]:
        """What is kept of each label, see the objective; nothing of texts."""
        return () if self.has_tokens else self.task.objective.columns(self.splits.classes)

    def places(self) -> dict[Id, int]:
        """How many labels each training sample has, by id."""
        return {sample.id: len(self.labels(sample)) for sample in self.splits.training}

    def labels(self, sample: Sample) -> list[tuple[str, str]]:
        """A sample's labels: where each stands, '' where there is one, and what it says."""
        if self.config.task == "multi-label":
            says = SeveralClasses.choices
            return [(name, says[name in sample.label]) for name in self.splits.classes]
        if self.config.task == "token-classification":
            words = enumerate(zip(sample.content, sample.label, strict=True), start=1)
            return [(f"{k} {word}", tag) for k, (word, tag) in words]
        return [("", str(sample.label))]

    # ---- losses

    @property
    def has_tokens(self) -> bool:
        """Whether a row's loss is a sum over tokens."""
        return isinstance(self.task.objective, NextToken)

    def label_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each label, (B, L): of a class, a token, a number; 0 for none."""
        return self.task.losses(model, batch)

    def token_terms(self, model: nn.Module, batch: Batch) -> Tensor:
        """The same over the number of labels in the batch: terms that add up to its mean loss."""
        return self.label_losses(model, batch) / self.weights(batch).sum().clamp_min(1)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Terms (B,) that add up to the batch's mean loss."""
        return self.token_terms(model, batch).sum(1)

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's mean loss, over its labels; of a half what it adds to the total."""
        if EACH in batch:
            return self.label_losses(model, batch).sum(1) @ batch[EACH]
        return self.losses(model, batch).sum()

    def weights(self, batch: Batch) -> Tensor:
        """What each row weighs in the batch's mean, (B,): how many labels it has."""
        return self.task.objective.known(batch).float().sum(1)

    # ---- model

    def start(self, seed: int | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step; both from the seed alone."""
        model = self.drawn(seed)
        with self.apart(model, self.splits.training) as trainer:
            return model, trainer.create_optimizer()

    @contextmanager
    def apart(
        self,
        model: nn.Module,
        samples: Sequence[Sample],
        callbacks: Sequence[Any] = (),
        **changes: Any,
    ) -> Iterator[Any]:
        """A Trainer that leaves nothing behind: no files, no logs, no evaluation.

        `changes` are of its arguments.
        """
        from inrun.training._arguments import SILENT, arguments_of
        from inrun.training._trainer import RowTrainer

        with tempfile.TemporaryDirectory() as folder:
            arguments = arguments_of(self.config, Path(folder), **SILENT, **changes)
            yield RowTrainer(self, model, arguments, samples, callbacks=callbacks)

    def drawn(self, seed: int | None = None) -> nn.Module:
        """The model before the first step, from the seed alone."""
        torch.manual_seed(self.config.seed if seed is None else seed)
        return self.task.build().to(self.device).train()

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
        torch.manual_seed(self.config.seed)  # what is drawn and not trained is the run's own
        return self.task.build(folder).to(self.device).eval()

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
        again = Replayable(model, optimizer, self.losses, self.fetch, weights=self.weights)
        return open_trajectory(self.folder / TRAJECTORY, again)

    def steps(self) -> int:
        """How many optimizer steps there are."""
        config, processes = self.config, int(self.arguments.world_size)
        rows = -(-len(self._by_id) // processes)
        return config.epochs * -(-rows // (config.batch * config.accumulate))

    # ---- again

    def train_again(self, ids: Sequence[Id], seed: int) -> float:
        """Plain training on these samples from another start; what `check_pruning` takes.

        Returns the mean score on the test samples: accuracy, or minus a loss; see the objective.
        """
        model = self.drawn(1000 + seed)
        with self.apart(model, self.samples(ids), seed=1000 + seed) as trainer:
            trainer.train()
        return self.score(model)

    def score(self, model: nn.Module, samples: Sequence[Sample] | None = None) -> float:
        """Mean score over the test samples, or over others."""
        samples = self.splits.test if samples is None else samples
        was_training, found = model.training, []
        model.eval()
        with torch.no_grad():
            for begin in range(0, len(samples), SCORED_AT_ONCE):
                batch = self.collate(samples[begin : begin + SCORED_AT_ONCE])
                logits = self.task.logits(model, batch)
                found += self.task.objective.scores(logits, batch).tolist()
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
