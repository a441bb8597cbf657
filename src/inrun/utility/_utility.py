"""What a step is judged by: the validation loss, as one target or as several named ones.

V(w) = sum_k weight_k V_k(w), the weights adding up to 1. A value is a contribution to the
*reduction* of V: positive helped. Each named target gets a column of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from inrun.errors import MisuseError

_RESERVED = {
    "total", "step", "sample_id", "value", "value_normalised", "visits", "first_step", "last_step",
}  # fmt: skip

LossFunction = Callable[[nn.Module, Any], Tensor]


class Utility:
    """A validation loss.

    Args:
        loss_fn: `loss_fn(model, batch)` returns the loss, a scalar tensor with a graph. It is
            called in evaluation mode and must not depend on random numbers.
        batch: one validation batch in any form that `loss_fn` takes, or a dict from target names
            to batches. A dict whose values are all tensors or arrays is one batch (the form that
            `transformers` uses); any other dict names targets.
        targets: named batches, said explicitly; excludes `batch`.
        weights: of the named targets in the total; equal where not given. They are scaled to
            add up to 1.
        rows_axis: the axis of a validation batch's tensors that runs over rows; 1 for data that
            has its sequence first.

    Raises:
        MisuseError: no batch, both forms at once, or weights that do not fit the targets.

    Example:
        >>> import torch, inrun
        >>> from torch import nn
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> inrun.Utility(loss_fn, (x, y)).targets
        ('validation',)
        >>> by_class = {f"class {c}": (x[y == c], y[y == c]) for c in (0, 1)}
        >>> inrun.Utility(loss_fn, by_class).targets
        ('class 0', 'class 1')
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        batch: Any = None,
        *,
        targets: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        rows_axis: int = 0,
    ):
        if not callable(loss_fn):
            raise MisuseError("loss_fn must be callable: loss_fn(model, batch) -> scalar loss.")
        if (batch is None) == (targets is None):
            given = "Neither" if batch is None else "Both"
            raise MisuseError(
                f"{given} of batch and targets was given. Pass either a validation batch or "
                "targets={name: batch, ...}."
            )
        if targets is None and isinstance(batch, dict) and not _is_batch(batch):
            targets = batch
        self.named = targets is not None
        self.loss_fn, self.rows_axis = loss_fn, rows_axis
        self.batches: dict[str, Any] = (
            {"validation": batch} if targets is None else {str(k): v for k, v in targets.items()}
        )
        if not self.batches:
            raise MisuseError("The utility has no targets: there is nothing to be judged by.")
        taken = sorted(_RESERVED & set(self.batches))
        if taken:
            raise MisuseError(
                f"A target cannot be called {taken[0]!r}: tables have a column of that name. "
                "Choose another name."
            )
        self.weights = _weights(tuple(self.batches), weights)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets' names, in their order."""
        return tuple(self.batches)


def _is_batch(batch: Mapping[Any, Any]) -> bool:
    return bool(batch) and all(isinstance(v, (Tensor, np.ndarray)) for v in batch.values())


def _weights(names: tuple[str, ...], given: Mapping[str, float] | None) -> tuple[float, ...]:
    if given is None:
        return (1.0 / len(names),) * len(names)
    if set(given) != set(names) or any(not value >= 0 for value in given.values()):
        raise MisuseError(
            f"weights must give each target ({', '.join(names)}) a number of at least 0."
        )
    total = float(sum(given.values()))
    if total <= 0:
        raise MisuseError("weights must not all be 0.")
    return tuple(float(given[name]) / total for name in names)
