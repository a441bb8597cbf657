"""Labels of the validation rows, and of the rows that are trained on.

Labels of the validation rows are the integer tensors with one number per row. Exchanged at random
among all rows, they say what loss a model has that knows nothing of them.

Nobody tells an audit the labels of the training rows, but their losses do. With p (C,) a row's
probabilities and y its label, cross-entropy's gradient at the logits is w (p - e_y), which adds up
to 0 and is negative at y alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inrun.capture import ModelCall
from inrun.utility import Utility, row_count

ROUNDING = 1e-2  # of a row's absolute gradients, what their sum may be off 0: half precision


def trained_labels(calls: Sequence[ModelCall]) -> Counter[int]:
    """How many rows of a block had each label; empty where the loss seems to be of no labels."""
    found: Counter[int] = Counter()
    for call in calls:
        for path in call.sinks():
            gradient = call.gradients[path].detach()
            if gradient.ndim == 2 and gradient.shape[1] > 1:
                found.update(_labels_of(gradient.double()))
    return found


def _labels_of(gradient_BC: Tensor) -> list[int]:
    size = gradient_BC.abs().sum(1)
    gradient_BC, size = gradient_BC[size > 0], size[size > 0]  # rows without a label have none
    if (gradient_BC.sum(1).abs() > ROUNDING * size).any():
        return []
    labels: list[int] = gradient_BC.argmin(1).tolist()
    return labels


def with_shuffled_labels(utility: Utility) -> tuple[Utility | None, set[int] | None]:
    """The utility with its labels exchanged among all rows, and which labels there are.

    None where no tensor can be taken for labels, or a row can have one only.
    """
    axis, found = utility.rows_axis, list[Tensor]()

    def noted(labels: Tensor) -> Tensor:
        found.append(labels)
        return labels

    for batch in utility.batches.values():
        _labels_replaced(batch, row_count(batch, axis), noted)
    if len(found) != len(utility.batches):
        return None, None
    every = torch.cat([labels.flatten() for labels in found])
    labels = set(every.tolist())
    if len(labels) < 2:
        return None, labels
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    left = iter(every[order.to(every.device)].split([labels.numel() for labels in found]))
    return (
        Utility(
            utility.loss_fn,
            targets={
                name: _labels_replaced(batch, row_count(batch, axis), lambda _: next(left))
                for name, batch in utility.batches.items()
            },
            rows_axis=axis,
            batch_size=utility.batch_size,
            draws=utility.draws,
        ),
        labels,
    )


def _labels_replaced(batch: Any, rows: int | None, by: Callable[[Tensor], Tensor]) -> Any:
    """The batch with `by` of each integer tensor that has one number per row."""
    if isinstance(batch, Tensor):
        whole = not batch.dtype.is_floating_point and batch.dtype is not torch.bool
        return by(batch) if whole and batch.ndim == 1 and len(batch) == rows else batch
    if isinstance(batch, Mapping):
        made = {key: _labels_replaced(value, rows, by) for key, value in batch.items()}
        return made if type(batch) is dict else type(batch)(made)  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[_labels_replaced(value, rows, by) for value in batch])
    if isinstance(batch, (list, tuple)):
        return type(batch)(_labels_replaced(value, rows, by) for value in batch)
    return batch
