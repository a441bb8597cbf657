"""What training met at each sample, averaged over its visits: loss, margin, class probabilities.

The margin is the label's logit less the largest other one: Area Under the Margin (Pleiss et al.,
2020) is its mean. Letters: N samples, B rows of a pass, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inrun.training._samples import Id


class Seen:
    """Sums over visits: their number, losses, margins, and C probabilities."""

    def __init__(self, ids: Sequence[Id], classes: int, state: Tensor | None = None):
        self._row = {sample_id: row for row, sample_id in enumerate(ids)}
        self._classes = classes
        self._sums = np.zeros((len(ids), 3 + classes)) if state is None else state.numpy().copy()

    def add(
        self,
        ids: Sequence[Id],
        losses: Tensor,
        logits: Tensor | None,
        batch: dict[str, Tensor],
        weights: Tensor,
    ) -> None:
        """Adds a pass: its terms (B,), logits (B, C), and each row's weight in the pass's mean."""
        rows = [self._row[i] for i in ids]
        mean = losses.detach() * weights.sum() / weights.clamp_min(1)
        columns = [torch.ones_like(mean), mean]
        if logits is not None:
            labels = batch["labels"].unsqueeze(1)
            rival = logits.scatter(1, labels, -torch.inf).amax(1)
            columns += [logits.gather(1, labels)[:, 0] - rival, *logits.softmax(1).T]
        found = torch.stack(columns, 1).double().cpu().numpy()
        self._sums[rows, : found.shape[1]] += found

    def state(self) -> Tensor:
        """For a checkpoint."""
        return torch.from_numpy(self._sums.copy())

    @property
    def _means(self) -> np.ndarray:
        return self._sums[:, 1:] / np.maximum(self._sums[:, :1], 1)

    @property
    def losses(self) -> np.ndarray:
        """(N,)."""
        return self._means[:, 0]

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C)."""
        return self._means[:, 2:]

    def columns(self) -> dict[str, pa.Array]:
        """`mean_loss` and `mean_margin`, in the order of ids; null for what was never visited."""
        never = self._sums[:, 0] == 0
        names = ["mean_loss", *(["mean_margin"] if self._classes else [])]
        return {name: pa.array(self._means[:, k], mask=never) for k, name in enumerate(names)}
