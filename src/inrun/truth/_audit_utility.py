"""What judges an audit: the run's validation loss, by halves of its rows, and what labels say.

The halves' truths, compared with each other, say how far the validation rows at hand determine the
values at all. One halving is off by anything, so that with several targets many are averaged.

Labels of the validation rows are the integer tensors with one number per row. Exchanged at random
among all rows, they say what loss a model has that knows nothing of them. Nobody tells an audit the
labels of the training rows, but their losses do. With p (C,) a row's probabilities and y its
label, cross-entropy's gradient at the logits is w (p - e_y), which adds up to 0 and is negative at
y alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inrun.capture import ModelCall
from inrun.distributed import Processes
from inrun.utility import Utility, losses_of, row_count, take_rows, weighed

HALVINGS = 20
ROUNDING = 1e-2  # of a row's absolute gradients, what their sum may be off 0: half precision


class AuditUtility:
    """Targets of the whole, then of the first half, then of the second, where rows can be halved.

    Targets of weight 0 judge nothing and are left out; `of_values` has the weights of all.
    They are tried on the model: a loss function may insist on the whole batch. Halves are those of
    all processes or of none.
    """

    def __init__(self, utility: Utility, model: nn.Module, processes: Processes):
        self.of_values = np.asarray(utility.weights)
        utility = utility.judging()
        self.utility, self._whole = utility, utility
        self.weights = np.asarray(utility.weights)
        counts = [row_count(batch, utility.rows_axis) for batch in utility.batches.values()]
        self.rows = None if None in counts else sum(count or 0 for count in counts)
        self._shuffled, own = with_shuffled_labels(utility)
        labels = processes.gathered(own)
        self.labels = None if None in labels else set().union(*labels)
        self._parts = 1
        halved = None
        if all(count is not None and count >= 2 for count in counts):
            halved = self._halved(utility, model)
        (everyone,) = processes.all([halved is not None])
        if everyone and halved is not None:
            self.utility, self._parts = weighed(halved, model, processes), 3

    def _halved(self, utility: Utility, model: nn.Module) -> Utility | None:
        """The whole and its halves as targets; None where the loss function does not take them."""
        halved = Utility(
            utility.loss_fn,
            targets={
                f"{name}, part {part}": batch
                for part, batches in enumerate(self._halves(utility))
                for name, batch in batches.items()
            },
            rows_axis=utility.rows_axis,
            batch_size=utility.batch_size,
            draws=utility.draws,
        )
        try:
            losses_of(halved, model)
        except Exception:  # whatever the user's loss function raises on half of its batch
            return None
        return halved

    @staticmethod
    def _halves(utility: Utility) -> list[dict[str, object]]:
        """All rows, and random halves: data is often sorted, by class for instance."""
        axis = utility.rows_axis
        parts: list[dict[str, object]] = [dict(utility.batches), {}, {}]
        for name, batch in utility.batches.items():
            rows = row_count(batch, axis) or 0
            order = np.random.default_rng(0).permutation(rows).tolist()
            for part, chosen in enumerate((order[: rows // 2], order[rows // 2 :]), start=1):
                parts[part][name] = take_rows(batch, sorted(chosen), axis)
        return parts

    @property
    def columns(self) -> np.ndarray:
        """(all targets, 1 + 2 D): what makes total losses of all parts' losses of the targets.

        The whole, then D pairs of halves. Each target's rows fall into two halves, so that of K
        targets 2^(K - 1) stratified halvings can be had; D of them are drawn.
        """
        whole = np.zeros((self._parts, len(self.weights)))
        whole[0] = self.weights
        if self._parts == 1:
            return whole.reshape(-1, 1)
        rng = np.random.default_rng(0)
        columns = [whole]
        for _ in range(HALVINGS if len(self.weights) > 1 else 1):
            swapped = rng.random(len(self.weights)) < 0.5
            for first in (~swapped, swapped):
                half = np.zeros_like(whole)
                half[1], half[2] = self.weights * first, self.weights * ~first
                columns.append(half)
        return np.stack([column.ravel() for column in columns], 1)

    def label_gain(self, model: nn.Module) -> float | None:
        """Which part of the loss under shuffled labels the own labels take off; None: no labels.

        Near 1 where the model knows the labels, 0 where they are of no use, negative where own
        labels cost more than strangers'.
        """
        if self._shuffled is None:
            return None
        own, other = (
            float(losses_of(utility, model).numpy() @ self.weights)
            for utility in (self._whole, self._shuffled)
        )
        return (other - own) / abs(other) if other else None

    def noise(self, model: nn.Module) -> float:
        """By how much the total loss at the same weights differs when it is computed again."""
        first, second = (losses_of(self._whole, model).numpy() for _ in range(2))
        return abs(float((first - second) @ self.weights))


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
