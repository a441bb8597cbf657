"""InRun in the `Trainer` of `transformers`, and in trainers that are made of it (TRL's SFTTrainer).

    trainer.add_callback(InRun(validation_dataset))
    trainer.train()

A callback is told nothing between the backward pass and clipping, nor which samples a batch has. So
the samples' ids ride in the batch, and are taken out again where the trainer computes its loss:
there a block begins that ends with the backward pass.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inrun.attribution import Attribution, Options, attach
from inrun.distributed import IN_AN_ENGINE
from inrun.errors import MisuseError, NotSupportedError
from inrun.integrations import _outcome
from inrun.integrations._datasets import describe, examples_of
from inrun.integrations._numbered import KEY, Numbering, require_column
from inrun.integrations._outcome import Tracker, configured
from inrun.integrations._places import Owned
from inrun.utility import LossFunction

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    from inrun.integrations._trainer import (
        OwnLoss,
        WatchedLoss,
        held_out,
        makes_rollouts,
        rollouts,
        trainer_of,
        utility_of,
    )
except ImportError as error:
    raise ImportError(
        "inrun.integrations.transformers needs transformers and accelerate: "
        "pip install 'inrun[transformers]'"
    ) from error


def margin_loss(model: nn.Module, batch: Any) -> Tensor:
    """By how much rejected answers are liked more than chosen ones, a mean over pairs.

    For `InRun(pairs, loss_fn=margin_loss)` with TRL's `DPOTrainer` and `RewardTrainer`: the
    difference of the completions' log-probabilities, or of their rewards.

    Args:
        model: a language model, or one with a single reward for each row.
        batch: (2B, T), chosen rows before rejected ones.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if logits.ndim == 2:
        liked = logits.squeeze(-1)
    else:
        wanted = batch["input_ids"][:, 1:, None]
        of_token = logits[:, :-1].float().log_softmax(-1).gather(-1, wanted).squeeze(-1)
        liked = (of_token * batch["completion_mask"][:, 1:]).sum(1)
    chosen, rejected = liked.chunk(2)
    loss: Tensor = (rejected - chosen).mean()
    return loss


class InRun(TrainerCallback):
    """Scores every sample of a `Trainer`'s run.

    Values, state and books are written where checkpoints are: `inrun-values.parquet` and
    `inrun.safetensors` in each checkpoint, from which `train(resume_from_checkpoint=...)` goes on,
    and `inrun-values.parquet` and `inrun-ledger.parquet` in `output_dir` at the end. What the
    trainer reports to (tensorboard, wandb, mlflow) gets the books' last row at every log, and the
    table of worst samples at every checkpoint and at the end.

    Args:
        validation: the rows that contributions are measured on: a data set with the items that
            training has, or a mapping of target names to such data sets, or an `inrun.Utility`.
        loss_fn: (model, batch) -> loss of a collated validation batch; the trainer's own by
            default.
        ids: an item's column that holds its id, an int or a string; its position in the training
            data by default. Set `remove_unused_columns=False`, or the trainer drops the column.
        examples: where the trainer packs several examples into a row, the data set that it was
            given: an example's id is then its position there, or what it has in the column `ids`,
            and the pieces of one that was cut over two rows are one sample. Without it an example
            is known as "row:place", its place in a row of `trainer.train_dataset`.
        validation_rows: how many rows of each validation data set are used.
        options: for `inrun.attach`: estimator, store, scoring, options, ...

    Example:
        trainer = Trainer(model, args, train_dataset=train, data_collator=collate)
        trainer.add_callback(inrun := InRun(validation))
        trainer.train()
        inrun.attribution.values()
    """

    def __init__(
        self,
        validation: Any,
        *,
        loss_fn: LossFunction | None = None,
        ids: str | None = None,
        examples: Any = None,
        validation_rows: int = 64,
        **options: Any,
    ):
        self._validation, self._loss_fn, self._column = validation, loss_fn, ids
        self._examples, self._rows = examples, validation_rows
        self._options = {"options": Options(progress=False), **options}
        self._attribution: Attribution | None = None
        self._numbering: Numbering | None = None
        self._watched: WatchedLoss | None = None
        self._trackers: list[Tracker] = []
        self._blocks = 0
        self._samples: tuple[Any, str | None] = None, None  # the data set that ids count in

    @property
    def attribution(self) -> Attribution:
        """The run's attribution; its tables stay readable when training is over.

        Raises:
            MisuseError: training has not begun.
        """
        if self._attribution is None:
            raise MisuseError("There are no values yet: call trainer.train() first.")
        return self._attribution

    # ---- called by the trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Attaches, and goes on from the checkpoint that the trainer resumes from."""
        self._end()
        _refuse(args, kwargs)
        trainer = trainer_of(self)
        self._numbering = Numbering(kwargs["train_dataloader"])
        try:
            self._begin(args, state, trainer, kwargs["optimizer"])
        except Exception:
            self._end()
            raise

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A new optimizer step: its blocks are counted."""
        self._blocks = 0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """All of the step's blocks are over.

        Raises:
            MisuseError: no block came to the model.
        """
        self.attribution.close_batch()
        if not self._blocks:
            self._end()
            raise MisuseError(
                "No sample ids came to the trainer's compute_loss. They ride in the batch "
                f"under {KEY!r}: a training_step of your own must call "
                "self.compute_loss(model, inputs), with all inputs."
            )

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """A micro-batch is over."""
        self.attribution.close_batch()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """With a training loss the books' last row goes into the history and to the trackers."""
        if self._attribution is None or "loss" not in (logs or {}):
            return
        numbers = _outcome.scalars(self._attribution)
        if state.log_history:
            state.log_history[-1].update(numbers)
        for tracker in self._trackers:
            tracker.scalars(numbers, state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """State and values go beside the checkpoint."""
        if self._watched is None:
            return
        folder = _checkpoint(args, state)
        kept = self.attribution.state_dict()
        if state.is_world_process_zero and folder.is_dir():
            _outcome.write_checkpoint(self.attribution, kept, folder)
            _outcome.show_worst(self.attribution, self._trackers, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Values and books go to `output_dir`; everything is taken off."""
        self._end()
        if self._attribution is not None and state.is_world_process_zero:
            _outcome.write_result(self._attribution, Path(str(args.output_dir)))
            if self._options.get("store") is not None:
                describe(self._options["store"], *self._samples)
            _outcome.show_worst(self._attribution, self._trackers, state.global_step)

    # ---- its own affairs

    def _begin(
        self, args: TrainingArguments, state: TrainerState, trainer: Any, optimizer: Any
    ) -> None:
        assert self._numbering is not None
        collate, model = self._numbering.collate, trainer.model
        first, column = self._numbering.first(), self._column
        examples = None
        if self._examples is not None:
            rows = self._numbering.dataset
            examples, column = examples_of(rows, trainer, self._examples, column), None
        elif column is not None:
            require_column(first, column)
        self._numbering.begin(column, examples)
        counted = self._numbering.dataset if self._examples is None else self._examples
        self._samples = counted, self._column
        columns: set[str] | None = None
        if makes_rollouts(trainer):
            batch_of = partial(rollouts, trainer)
        else:
            batch_of = partial(held_out, collate, next(model.parameters()).device)
            columns = set(first) - {column} if isinstance(first, dict) else None
        twice = self._options.get("estimator") == "sgd-second"
        loss_fn = OwnLoss(trainer, twice=twice) if self._loss_fn is None else self._loss_fn
        utility = utility_of(self._validation, loss_fn, batch_of, columns, self._rows)
        resumed = state.global_step > 0
        self._attribution = attach(  # the wrapper, which knows when gradients are averaged
            trainer.model_wrapped, optimizer, utility, **{"resume": resumed, **self._options}
        )
        if resumed:
            _outcome.load_checkpoint(self._attribution, _checkpoint(args, state))
        self._watched = WatchedLoss(trainer, self._before_loss, self._lost)
        if state.is_world_process_zero:
            folder = Path(os.getenv("TENSORBOARD_LOGGING_DIR") or f"{args.output_dir}/runs")
            given = args.report_to
            names = [given] if isinstance(given, str) else list(given or [])
            self._trackers = configured(names, folder / "inrun")

    def _before_loss(self, owned: Owned) -> None:
        self._blocks += 1
        self.attribution.open_batch(owned.ids, rows=owned.rows, slots=owned.slots)

    def _lost(self, error: Exception) -> None:
        """A loss could not be computed here, maybe not in other processes: nobody is waited for."""
        self.attribution.__exit__(type(error), error, None)
        self._end()

    def _end(self) -> None:
        """Takes hooks and numbers off; may be called twice."""
        if self._numbering is not None:
            self._numbering.undo()
            self._numbering = None
        if self._watched is not None:
            self._watched.undo()
            self._watched = None
            self.attribution.detach()


def _refuse(args: TrainingArguments, kwargs: dict[str, Any]) -> None:
    """Raises for trainers whose gradients cannot be read."""
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
        raise NotSupportedError(IN_AN_ENGINE)
    if args.n_gpu > 1:
        raise NotSupportedError(
            "The trainer spreads each batch over several GPUs in one process (DataParallel). "
            "Start one process a GPU: torchrun --nproc-per-node=N."
        )
    if kwargs.get("optimizer") is None:
        raise NotSupportedError(
            "The trainer gave its callbacks no optimizer, so its steps cannot be scored. Call "
            "trainer.create_optimizer() before trainer.train()."
        )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint at this step."""
    given = args.resume_from_checkpoint
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    if isinstance(given, str) and Path(given).name == name:
        return Path(given)
    return Path(str(args.output_dir)) / name
