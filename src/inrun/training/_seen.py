"""What training met at each label: its loss, and what its objective keeps beside.

Letters: N samples, P labels of all samples, B rows of a pass, L labels of a row, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inrun.ledger import PartId, Run, write_table
from inrun.training._config import PROBABILITIES
from inrun.training._samples import Id
from inrun.training._training import Training

PLAIN = ("mean_margin", "mean_prediction")  # columns of samples, not of classes


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


def keep_seen(training: Training, stored: Run, seen: Seen) -> None:
    """What training met at each sample, and the probabilities at each of its labels."""
    table, names = stored.samples(), training.columns
    assert table is not None
    means, never = seen.of_samples()
    plain = [name for name in names if name in PLAIN]
    for k, name in enumerate(["mean_loss", *plain]):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(means[:, k], mask=never))
    stored.write_samples(table)
    classes = names[len(plain) :]
    if not classes:
        return
    of_labels = [
        (i, *label) for i, s in zip(training.ids, training.splits.training, strict=True)
        for label in training.labels(s)
    ]  # fmt: skip
    ids, places, labels = zip(*of_labels, strict=True)
    met = seen.means()
    columns = {
        ":id": pa.array(ids, table["sample_id"].type), ":place": places, ":label": labels,
        ":loss": pa.array(met[:, 0], mask=seen.never),
    }  # fmt: skip
    columns |= dict(zip(classes, met[:, 1 + len(plain) :].T, strict=True))
    write_table(stored.path / PROBABILITIES, pa.table(columns), PartId("probabilities"))
