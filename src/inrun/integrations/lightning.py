"""InRun in the `Trainer` of Lightning, in automatic and in manual optimization.

    trainer = Trainer(callbacks=[InRun(utility, ids="id")])

Lightning runs forward and backward inside `optimizer.step(closure)`; the closure is run right
before the step, which then gets its result (see `inrun.attribution`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inrun.attribution import Attribution, Options, attach
from inrun.errors import MisuseError
from inrun.integrations import _outcome
from inrun.integrations._outcome import MLflow, TensorBoard, Tracker, WeightsAndBiases
from inrun.utility import Utility

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "inrun.integrations.lightning needs lightning: pip install 'inrun[lightning]'"
    ) from error


class InRun(Callback):
    """Scores every sample of a Lightning run.

    The state goes into Lightning's checkpoints, and `fit(ckpt_path=...)` goes on from it. Every
    logger gets the books' last row as `inrun/...`, and tensorboard, wandb and mlflow the table of
    worst samples at the end; values and books are written to `default_root_dir`.

    In manual optimization a block ends with the first backward pass of a batch. Where a
    `training_step` has several, pass `ids=None` and put each into
    `with callback.attribution.batch(ids)`.

    Args:
        utility: what contributions are measured in; its batches are moved to the model's device
            and precision.
        ids: where a batch has its samples' ids: a key, an index, or a function of the batch; None
            where `training_step` opens its blocks itself.
        options: for `inrun.attach`: estimator, store, scoring, options, ...
    """

    def __init__(
        self, utility: Utility, *, ids: str | int | Callable[[Any], Any] | None, **options: Any
    ):
        if not isinstance(utility, Utility):
            raise MisuseError("utility must be an inrun.Utility(loss_fn, validation_batch).")
        self._utility, self._where = utility, ids
        self._options = {"options": Options(progress=False), **options}
        self._attribution: Attribution | None = None
        self._resumed: dict[str, Any] = {}

    @property
    def attribution(self) -> Attribution:
        """The run's attribution; its tables stay readable when training is over.

        Raises:
            MisuseError: training has not begun.
        """
        if self._attribution is None:
            raise MisuseError("There are no values yet: call trainer.fit() first.")
        return self._attribution

    # ---- called by Lightning

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches, and goes on from the checkpoint that was loaded."""
        self._detach()
        utility = _as_trained(self._utility, trainer)
        options = {"resume": bool(self._resumed), **self._options}
        self._attribution = attach(pl_module, trainer.optimizers, utility, **options)
        if self._resumed:
            self._attribution.load_state_dict(self._resumed)
            self._resumed = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins the batch's block."""
        if self._where is not None:
            self.attribution.open_batch(self._ids_of(batch))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the block, if no step did, and logs the books.

        A batch for which `training_step` returned None is skipped, if nothing was run backward.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.attribution.close_batch(skipped=loss is None)
        numbers = _outcome.scalars(self.attribution)
        if numbers:
            pl_module.log_dict(numbers, on_step=True, batch_size=1)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Takes everything off; what was scored stays readable."""
        self._detach()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes values and books, and takes everything off."""
        self._detach()
        if trainer.is_global_zero:
            _outcome.write_result(self.attribution, Path(trainer.default_root_dir))
            _outcome.show_worst(self.attribution, _trackers(trainer), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The attribution's state, for Lightning's checkpoint."""
        if self._attribution is None or not self._attribution.attached:
            return {}
        return self._attribution.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training starts."""
        self._resumed = state_dict

    # ---- its own affairs

    def _ids_of(self, batch: Any) -> Any:
        if callable(self._where):
            return self._where(batch)
        try:
            return batch[self._where]
        except (KeyError, IndexError, TypeError) as error:
            has = f"; it has {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise MisuseError(
                f"The batch has no {self._where!r}, which ids were to be taken from{has}. Let the "
                "data set give each item its id, or pass ids=function_of_the_batch."
            ) from error

    def _detach(self) -> None:
        if self._attribution is not None and self._attribution.attached:
            self._attribution.close_batch(failed=True)
            self._attribution.detach()


def _as_trained(utility: Utility, trainer: Trainer) -> Utility:
    """On the model's device and in its precision, as the trainer does with its own batches."""
    precision = trainer.precision_plugin
    made = utility.on({
        name: trainer.strategy.batch_to_device(precision.convert_input(batch))
        for name, batch in utility.batches.items()
    })  # fmt: skip
    if precision.precision in ("64-true", "bf16-true", "16-true"):

        def loss_fn(model: Any, batch: Any) -> Any:
            with precision.forward_context():  # new tensors are of the model's precision
                return utility.loss_fn(model, batch)

        made.loss_fn = loss_fn
    return made


def _trackers(trainer: Trainer) -> list[Tracker]:
    """What the trainer's loggers can show a table with."""
    found: list[Tracker] = []
    for logger in trainer.loggers:
        kind, tool = type(logger).__name__, getattr(logger, "experiment", None)
        if kind == "TensorBoardLogger":
            found.append(TensorBoard(tool))
        elif kind == "WandbLogger":
            found.append(WeightsAndBiases(sys.modules["wandb"]))
        elif kind == "MLFlowLogger":
            found.append(MLflow(tool, getattr(logger, "run_id", None)))
    return found
