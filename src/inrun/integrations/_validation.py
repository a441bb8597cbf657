"""The validation rows of a framework's data set, as a utility."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.utility import LossFunction, Utility


def model_loss(model: nn.Module, batch: Mapping[str, Any], *, fused: bool = True) -> Tensor:
    """The loss that a model of `transformers` computes itself from a batch with labels.

    Args:
        model: the model.
        batch: what it is called with.
        fused: whether a head that is fused with its loss is used where TRL has put one: it spares
            the logits, and has no second derivative.
    """
    own = {"fused_lm_head": True} if fused and "labels" in batch and _has_fused(model) else {}
    output = model(**batch, **own)
    loss = output["loss"] if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise MisuseError(
            "The model returned no loss for the validation batch; it has no labels, or the model "
            "computes none. Give InRun(..., loss_fn=...), a function (model, batch) -> loss."
        )
    return loss


def _has_fused(model: nn.Module) -> bool:
    """Whether TRL has put a forward of its own in the place of the model's, or of an adapter's."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    called = inspect.signature(owner.forward, follow_wrapped=False)  # type: ignore[operator]
    return "fused_lm_head" in called.parameters


def utility_of(
    validation: Any,
    loss_fn: LossFunction,
    collate: Callable[[list[Any]], Any],
    columns: set[str] | None,
    rows: int,
    device: torch.device,
) -> Utility:
    """A utility from rows of a data set, or from a mapping of target names to such rows.

    Args:
        validation: a `Utility`, which is taken as it is; a data set; or data sets by target.
        loss_fn: (model, batch) -> loss.
        collate: of the training loader.
        columns: the keys that training items have; others are left out. None: items are no dicts.
        rows: how many of each data set, from its beginning.
        device: where the model is.

    Raises:
        MisuseError: no rows.
    """
    if isinstance(validation, Utility):
        return validation

    def batch_of(name: str, dataset: Any) -> Any:
        items = [dataset[i] for i in range(min(rows, len(dataset)))]
        if not items:
            raise MisuseError(f"The validation data {name!r} is empty: nothing to judge by.")
        if columns is not None:
            items = [{key: item[key] for key in item if key in columns} for item in items]
        with _random_as_before():
            batch = collate(items)
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    if isinstance(validation, Mapping):
        return Utility(loss_fn, targets={n: batch_of(str(n), d) for n, d in validation.items()})
    return Utility(loss_fn, batch_of("validation", validation))


@contextmanager
def _random_as_before() -> Iterator[None]:
    """A collator may draw (masks, augmentations); training must not notice."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
