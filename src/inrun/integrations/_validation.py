"""The validation rows of a framework's data set, as a utility."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.integrations._numbered import KEY
from inrun.integrations._places import collated
from inrun.utility import LossFunction, Utility, states_kept


def utility_of(
    validation: Any,
    loss_fn: LossFunction,
    batch_of: Callable[[list[Any]], Any],
    columns: set[str] | None,
    rows: int,
) -> Utility:
    """A utility from rows of a data set, or from a mapping of target names to such rows.

    Args:
        validation: a `Utility`, which is taken as it is; a data set; or data sets by target.
        loss_fn: (model, batch) -> loss.
        batch_of: items -> batch.
        columns: the keys that training items have; others are left out. None: items are no dicts.
        rows: how many of each data set, from its beginning.

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
