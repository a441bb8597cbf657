"""The validation loss of an audit: the run's own, and by each half of its rows where it has halves.

The halves' truths, compared with each other, say how far the validation rows at hand determine the
values at all.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from inrun.distributed import Processes
from inrun.utility import Utility, losses_of, row_count, take_rows, weighed


class AuditUtility:
    """Targets of the whole, then of the first half, then of the second, where rows can be halved.

    Args:
        utility: the run's.
        model: to try the halves on: a loss function may insist on the whole batch.
        processes: that judge together: halves are those of all or of none.
    """

    def __init__(self, utility: Utility, model: nn.Module, processes: Processes):
        self.utility, self._whole = utility, utility
        self.weights = np.asarray(utility.weights)
        counts = [row_count(batch, utility.rows_axis) for batch in utility.batches.values()]
        self.rows = None if None in counts else sum(count or 0 for count in counts)
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
        """(all targets, parts): what makes the parts' total losses of the targets' losses."""
        return np.kron(np.eye(self._parts), self.weights[:, None])

    def noise(self, model: nn.Module) -> float:
        """By how much the total loss at the same weights differs when it is computed again."""
        first, second = (losses_of(self._whole, model).numpy() for _ in range(2))
        return abs(float((first - second) @ self.weights))
