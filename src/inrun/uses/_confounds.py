"""What a ranking may be instead of what it says: its rank correlation with plainer things.

Values of a language model's samples are often close to an order by length, by the size of the
sample's own gradient, or by what any query of that format would give. Each is compared with the
ranking by Spearman's rho over samples; where rho^2 is above 1/2, most of the variance of ranks
belongs to that thing, and it is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from inrun.answers import Answer
from inrun.uses._ranking import rank
from inrun.uses._samples import Valued, described, samples_of
from inrun.utility import CONTROL

MOSTLY = 0.5  # of the ranks' variance
LENGTHS = ("length", "tokens", "n_tokens", "num_tokens")  # columns that say how long a sample is
FEWEST = 8  # samples


@dataclass(frozen=True, repr=False)
class Confounds(Answer):
    """What `inrun.confounds` returns.

    Attributes:
        by: the ranking's name.
        table: one row per thing that the ranking was compared with: `name`, `correlation` (rank
            correlation over samples, from -1 to 1), `samples`, and `mostly`, whether it is more
            than half of the ranks' variance.
    """

    by: str
    table: pa.Table

    def sentences(self) -> list[str]:
        """The correlations, and a warning for each that is most of the ranking."""
        rows = self.table.to_pylist()
        if not rows:
            return ["Nothing is known of the samples that the ranking could be compared with."]
        told = ", ".join(f"{row['name']} {row['correlation']:+.2f}" for row in rows)
        said = [f"Rank correlation of the values ({self.by}) with: {told}."]
        return said + [
            f"The ranking is mostly that by {row['name']} ({row['correlation']:+.2f}): do not take "
            "it for what the samples did to the behaviour before they are compared at equal "
            f"{row['name']}."
            for row in rows
            if row["mostly"]
        ]


def confounds(run: Valued, *, by: str = "normalised", samples: pa.Table | None = None) -> Confounds:
    """How much of a ranking is the control's or the samples' length.

    Args:
        run: a stored run, or a live attribution with a store.
        by: the ranking: 'total', 'normalised' or 'harm'.
        samples: what the samples are, if the run was not told (`Run.describe`): a column `length`
            or `tokens` is their length, else the characters of their `text`.

    Raises:
        MisuseError: no such ranking.
        StoreError: the run holds no visits.
    """
    visits, told = run.visits(), samples_of(run, samples)
    ranked = rank(visits, run.targets, by)
    ids = pa.table({"sample_id": pa.array(ranked.ids.tolist(), visits["sample_id"].type)})
    found = []
    for name, x in _things(visits, described(ids, told)):
        known = np.isfinite(x)
        rho = spearman(x[known], ranked.scores[known])
        if np.isfinite(rho):
            mostly = rho**2 > MOSTLY and int(known.sum()) >= FEWEST
            found.append((name, rho, int(known.sum()), mostly))
    columns: list[list[object]] = [list(c) for c in zip(*found, strict=True)] or [[], [], [], []]
    names = {"name": pa.string(), "correlation": pa.float64(), "samples": pa.int64(),
             "mostly": pa.bool_()}  # fmt: skip
    return Confounds(by, pa.table(columns, schema=pa.schema(list(names.items()))))


def _things(visits: pa.Table, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """A name and a number per sample."""
    _, row = np.unique(visits["sample_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    if CONTROL in visits.column_names:
        values = visits[CONTROL].to_numpy()
        steps = np.unique(visits["step"].to_numpy(), return_inverse=True)[1]
        size = np.bincount(steps, np.abs(values)) / np.bincount(steps)
        yield "the control", np.bincount(row, values / np.where(size > 0, size, 1)[steps])
    for name in LENGTHS:
        if name in table.column_names and pa.types.is_primitive(table[name].type):
            yield "length", table[name].cast(pa.float64()).to_numpy()
            return
    if "text" in table.column_names:
        texts = table["text"].to_pylist()
        yield "length", np.array([np.nan if t is None else float(len(str(t))) for t in texts])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; NaN where there are fewer than two, or all are equal."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
