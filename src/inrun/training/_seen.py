"""What training met at each label: its loss, and what its objective keeps beside.

Letters: N samples, P labels of all samples, B rows of a pass, L labels of a row, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inrun.training._samples import Id


class Seen:
    """Sums over visits, (P, 2 + C): their number, losses, and the objective's columns.

    Args:
        places: how many labels each sample has, by id.
        columns: C.
    """

    def __init__(self, places: dict[Id, int], columns: int):
        counts = np.array(list(places.values()), dtype=np.int64)
        first = np.cumsum(counts) - counts
        self.places = counts
        self._first = dict(zip(places, first.tolist(), strict=True))
        self.sums = torch.zeros(int(counts.sum()), 2 + columns, dtype=torch.float64)

    def add(self, ids: Sequence[Id], losses: Tensor, known: Tensor, columns: Tensor) -> None:
        """Adds a pass: (B, L) losses, where labels are, and columns (B, L, C).

        A row's labels stand in the sample's order; those that were cut off are the last.
        """
        first = torch.tensor([self._first[i] for i in ids])
        known = known.cpu()
        index = (first.unsqueeze(1) + known.cumsum(1) - 1)[known]
        parts = [torch.ones_like(losses).unsqueeze(2), losses.unsqueeze(2), columns]
        found = torch.cat([part.double().cpu() for part in parts], 2)[known]
        self.sums[index] += found

    @property
    def never(self) -> np.ndarray:
        """Which labels were never visited, (P,)."""
        found: np.ndarray = (self.sums[:, 0] == 0).numpy()
        return found

    def means(self) -> np.ndarray:
        """(P, 1 + C)."""
        found: np.ndarray = (self.sums[:, 1:] / self.sums[:, :1].clamp_min(1)).numpy()
        return found

    def of_samples(self) -> tuple[np.ndarray, np.ndarray]:
        """The same over each sample's labels, (N, 1 + C), and which samples were never visited."""
        sample = np.repeat(np.arange(len(self.places)), self.places)
        seen = ~self.never
        counts = np.bincount(sample[seen], minlength=len(self.places))
        means = self.means()
        found = np.stack([np.bincount(sample[seen], x[seen], len(self.places)) for x in means.T], 1)
        return found / np.maximum(counts, 1)[:, None], counts == 0
