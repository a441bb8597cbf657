"""Loss terms, and what training met at each sample: loss, margin, class probabilities.

A label is a class (B,) or the next token at each place (B, T), -100 where none is predicted. The
margin is the label's logit less the largest other one: Area Under the Margin (Pleiss et al., 2020)
is its mean over visits. Letters: N samples, B rows of a pass, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.training._samples import Id


def label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each label, (B, 1) for classes and (B, T) for tokens, 0 where there is none."""
    logits = logits.float()
    if labels.ndim == 1:
        return nn.functional.cross_entropy(logits, labels, reduction="none").unsqueeze(1)
    found = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return nn.functional.pad(found, (1, 0))


def row_weights(labels: Tensor) -> Tensor:
    """How many labels each row predicts, (B,)."""
    wanted = (labels if labels.ndim == 1 else labels[:, 1:]) != -100
    return wanted.float().reshape(len(labels), -1).sum(1)


class Seen:
    """Sums over visits, (N, 3 + C): their number, losses, margins, probabilities."""

    def __init__(self, ids: Sequence[Id], classes: int):
        self._row = {sample_id: row for row, sample_id in enumerate(ids)}
        self.sums = torch.zeros(len(ids), 3 + classes, dtype=torch.float64)

    def add(self, ids: Sequence[Id], losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a pass: its losses as from `label_losses`, logits (B, C) or (B, T, C), and labels.

        A row's loss is the mean over what it predicts.
        """
        mean = losses.sum(1) / row_weights(labels).clamp_min(1)
        columns = [torch.ones_like(mean), mean]
        if labels.ndim == 1:
            own = labels.unsqueeze(1)
            rival = logits.scatter(1, own, -torch.inf).amax(1)
            columns += [logits.gather(1, own)[:, 0] - rival, *logits.float().softmax(1).T]
        found = torch.stack([c.double() for c in columns], 1).cpu()
        self.sums[[self._row[i] for i in ids], : found.shape[1]] += found

    def columns(self, classes: Sequence[str]) -> dict[str, pa.Array]:
        """`mean_loss` and `mean_margin`, in the order of ids; null for what was never visited."""
        means, never = self._means(), (self.sums[:, 0] == 0).numpy()
        names = ["mean_loss", *(["mean_margin"] if classes else [])]
        return {name: pa.array(means[:, k], mask=never) for k, name in enumerate(names)}

    def probabilities(self, classes: Sequence[str]) -> dict[str, np.ndarray]:
        """Each class's mean probability, (N,)."""
        return dict(zip(classes, self._means()[:, 2:].T, strict=True))

    def _means(self) -> np.ndarray:
        found: np.ndarray = (self.sums[:, 1:] / self.sums[:, :1].clamp_min(1)).numpy()
        return found
