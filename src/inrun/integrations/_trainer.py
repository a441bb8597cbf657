"""The trainer that calls the callback: when its loss begins, that loss on validation rows.

A callback is given no trainer, but is called by one. The trainer's `compute_loss` is where a block
begins: there ids are taken out of the batch, before anything is made of it, and however often the
model is then called; it is also the loss that values are measured in.
"""

from __future__ import annotations

from inrun.errors import require_extra

require_extra("transformers", "transformers", "accelerate")

# ruff: noqa: E402 - an extra that is not there is named before anything of it is imported

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from inrun.errors import MisuseError
from inrun.integrations._numbered import KEY, taken_out
from inrun.integrations._places import Owned, collated
from inrun.utility import LossFunction, Utility, states_kept, swapped, undisturbed

_COUNTED = (  # what trainers note while they compute a loss, for their logs
    "_metrics", "_total_train_tokens", "_logs", "_pending_metrics", "_pending_extra_logs",
    "_stored_metrics", "accum_loss_components",
)  # fmt: skip


def trainer_of(callback: TrainerCallback) -> Trainer:
    """The trainer that is calling a callback's method now; MisuseError where something else is."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    raise MisuseError(
        "InRun's methods are called by a transformers.Trainer that it was added to: "
        "trainer.add_callback(InRun(...)). For a loop of your own use inrun.attach."
    )


class WatchedLoss:
    """A trainer's `compute_loss`, of which each training batch is told; until `undo`.

    `begin` is called with what rides in a training batch before its loss is computed, `failed`
    where computing it fails. Trainers that make their batches themselves (GRPO, RLOO: completions
    of prompts) have the ids handed on from prompts to rows.
    """

    def __init__(
        self,
        trainer: Any,
        begin: Callable[[Owned], None],
        failed: Callable[[Exception], None],
    ):
        self._trainer, self._begin, self._failed = trainer, begin, failed
        self._before = {
            name: vars(trainer).get(name)
            for name in ("compute_loss", "_generate_and_score_completions")
        }
        self._compute: Callable[..., Any] = trainer.compute_loss
        vars(trainer)["compute_loss"] = self._watched
        if makes_rollouts(trainer):
            self._generate: Callable[..., Any] = trainer._generate_and_score_completions
            vars(trainer)["_generate_and_score_completions"] = self._handed_on

    def undo(self) -> None:
        for name, before in self._before.items():
            vars(self._trainer).pop(name, None)
            if before is not None:
                vars(self._trainer)[name] = before

    def _watched(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        owned, inputs = taken_out(inputs)
        if owned is not None and torch.is_grad_enabled():
            self._begin(owned.within(inputs))
        try:
            return self._compute(model, inputs, *args, **kwargs)
        except Exception as error:
            self._failed(error)
            raise

    def _handed_on(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [item[KEY] for item in inputs if KEY in item]
        plain = [{k: v for k, v in item.items() if k != KEY} for item in inputs]
        made: dict[str, Any] = self._generate(plain)
        return {**made, KEY: ids} if ids else made  # a list is shuffled and cut as tensors are


def makes_rollouts(trainer: Any) -> bool:
    return hasattr(trainer, "_generate_and_score_completions")


class OwnLoss:
    """(model, batch) -> the loss that a trainer itself computes, a mean over the batch.

    DFT's gradient is that of no loss, as its weights are the detached probabilities: values are
    then measured in the log-likelihood. TRL's fused head cannot be differentiated `twice`: the loss
    of a model that is given labels is then the model's own, from logits.
    """

    def __init__(self, trainer: Any, *, twice: bool = False):
        self._trainer, self._twice = trainer, twice
        self.reference = getattr(trainer, "ref_model", None)  # seen by who asks what may move

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """See the class; MisuseError where the trainer computes none."""
        trainer = self._trainer
        kind = getattr(trainer.args, "loss_type", None)
        of_a_loss = swapped(trainer.args, "loss_type", "nll") if kind == "dft" else nullcontext()
        with uncounted(trainer), of_a_loss, trainer.compute_loss_context_manager():
            batch = dict(taken_out(batch)[1])
            try:
                if self._twice and "labels" in batch:
                    loss: Tensor = model(**batch)["loss"]
                else:
                    loss = trainer.compute_loss(model, batch)
            except (KeyError, ValueError) as error:
                raise MisuseError(
                    "The trainer could not compute its loss on the validation rows "
                    f"({type(error).__name__}: {error}). They must be as those of "
                    "trainer.train_dataset, with labels where those have labels; or give "
                    "InRun(..., loss_fn=...), a function (model, batch) -> loss."
                ) from error
        return loss


@contextmanager
def uncounted(trainer: Any) -> Iterator[None]:
    """What the trainer notes for its logs is as before on leaving."""
    kept = {name: copy.deepcopy(vars(trainer)[name]) for name in _COUNTED if name in vars(trainer)}
    try:
        yield
    finally:
        vars(trainer).update(kept)


def rollouts(trainer: Any, items: list[Any]) -> dict[str, Any]:
    """A validation batch of prompts: completions of the policy as it is now, with their rewards.

    The log-probabilities under this policy ride along, so that the trainer's loss of the same
    completions under a later policy is their clipped, advantage-weighted likelihood ratio.
    """
    model = trainer.model
    each = getattr(trainer, "num_generations_eval", trainer.num_generations)
    with uncounted(trainer), states_kept(), undisturbed(model), torch.no_grad():
        made: dict[str, Any] = trainer._generate_and_score_completions(
            [i for i in items for _ in range(each)]
        )
        if made.get("old_per_token_logps") is None:
            rows = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
            mask = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
            found = trainer._get_per_token_logps_and_entropies(
                model, rows, mask, made["completion_ids"].shape[1]
            )
            made["old_per_token_logps"] = found[0]
    return {**made, KEY: torch.tensor(0)}


def utility_of(
    validation: Any,
    loss_fn: LossFunction,
    batch_of: Callable[[list[Any]], Any],
    columns: set[str] | None,
    rows: int,
) -> Utility:
    """A utility from the first rows of a data set, or of data sets by target.

    A `Utility` is taken as it is. `batch_of` makes items a batch. Only the `columns` that training
    items have are taken; None: items are no dicts.

    Raises:
        MisuseError: no rows.
    """
    if isinstance(validation, Utility):
        return validation

    def taken(name: str, dataset: Any) -> Any:
        items = [dataset[i] for i in range(min(rows, len(dataset)))]
        if not items:
            raise MisuseError(f"The validation data {name!r} is empty: nothing to judge by.")
        if columns is not None:
            items = [{key: item[key] for key in item if key in columns} for item in items]
        return batch_of(items)

    if isinstance(validation, Mapping):
        return Utility(loss_fn, targets={n: taken(str(n), d) for n, d in validation.items()})
    return Utility(loss_fn, taken("validation", validation))


def held_out(
    collate: Callable[[list[Any]], Any], device: torch.device, items: list[Any]
) -> dict[str, Any]:
    """A validation batch as the training loader would make it, on the model's device.

    Where rows are not one per sample, it gets a tensor without rows, so that it is never cut along
    them: a pair's rows belong together.
    """
    with torch.random.fork_rng(devices=[]), states_kept():
        batch, places = collated(collate, items)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return moved if places is None else {**moved, KEY: torch.tensor(0)}
