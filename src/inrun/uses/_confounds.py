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
import scipy

from inrun.answers import Answer
from inrun.ledger import GRADIENT_SIZE, normalised_by_step
from inrun.uses._ranking import rank
from inrun.uses._samples import Valued, described, samples_of, visited
from inrun.utility import CONTROL, controls_of

MOSTLY = 0.5  # of the ranks' variance
LENGTHS = ("length", "tokens", "n_tokens", "num_tokens")  # columns that say how long a sample is
FEWEST = 8  # samples
SIZE = "gradient size"
_SCHEMA = pa.schema(
    [("ranking", pa.string()), ("name", pa.string()), ("correlation", pa.float64()),
     ("samples", pa.int64()), ("mostly", pa.bool_())]
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Confounds(Answer):
    """What `inrun.confounds` returns.

    Attributes:
        table: one row per ranking and thing that it was compared with: `ranking`, `name`,
            `correlation` (rank correlation over samples, from -1 to 1), `samples`, and `mostly`,
            whether it is more than half of the ranks' variance.
    """

    table: pa.Table

    def sentences(self) -> list[str]:
        """The correlations, and a warning for each that is most of a ranking."""
        return self.correlations() + self.warnings()

    def correlations(self) -> list[str]:
        """A sentence per ranking."""
        told: dict[str, list[str]] = {}
        for row in self.table.to_pylist():
            found = told.setdefault(row["ranking"], [])
            found.append(f"{row['name']} {row['correlation']:+.2f}")
        if not told:
            return ["Nothing is known of the samples that the ranking could be compared with."]
        return [
            f"Rank correlation of the values ({ranking}) with: {', '.join(things)}."
            for ranking, things in told.items()
        ]

    def warnings(self) -> list[str]:
        """One for each ranking that is mostly something else."""
        return [
            f"The ranking ({row['ranking']}) is mostly that by {row['name']} "
            f"({row['correlation']:+.2f}): do not take it for what the samples did to the "
            f"behaviour before they are compared at equal {row['name']}"
            + (", as by='gradient' does." if row["name"] == SIZE else ".")
            for row in self.table.to_pylist()
            if row["mostly"]
        ]


def confounds(run: Valued, *, by: str | None = None, samples: pa.Table | None = None) -> Confounds:
    """How much of a ranking is the control's, the samples' length or their gradients' size.

    The size is known of runs that kept it (`inrun.Options(gradient_sizes=True)`); a ranking that is
    mostly it can be compared with that by 'gradient', where values are divided by it.

    Args:
        run: a stored run, or a live attribution with a store.
        by: the ranking: 'total', 'normalised', 'harm', 'gradient', or a target's name: its
            normalised values. Default: each behaviour of `inrun.contrast` where there are several,
            else 'normalised'.
        samples: what the samples are, if the run was not told (`Run.describe`): a column `length`
            or `tokens` is their length, else the characters of their `text`.

    Raises:
        MisuseError: no such ranking, or the run did not keep what it is made of.
        StoreError: the run holds no visits.
    """
    visits, told = run.visits(), samples_of(run, samples)
    known, row = visited(visits)
    ids = pa.table({"sample_id": pa.array(known.tolist(), visits["sample_id"].type)})
    things = list(_things(visits, row, described(ids, told)))
    controls = controls_of(run.targets)
    several = list(controls) if len(controls) > 1 else ["normalised"]
    found = []
    for ranking in several if by is None else [by]:
        if ranking in run.targets and ranking in visits.column_names:
            scores = _by_column(visits, row, ranking)
        else:
            scores = rank(visits, run.targets, ranking).scores
        own = {ranking: controls[ranking]} if ranking in controls else controls
        beside = [(_name(c), _by_column(visits, row, c)) for c in own.values()]
        for name, x in beside + things:
            finite = np.isfinite(x)
            rho, n = spearman(x[finite], scores[finite]), int(finite.sum())
            if np.isfinite(rho):
                mostly = rho**2 > MOSTLY and n >= FEWEST
                found.append((ranking, name, rho, n, mostly))
    return Confounds(
        pa.Table.from_pylist([dict(zip(_SCHEMA.names, f, strict=True)) for f in found], _SCHEMA)
    )


def _name(control: str) -> str:
    return "the control" if control == CONTROL else f"the {control}"


def _by_column(visits: pa.Table, row: np.ndarray, column: str) -> np.ndarray:
    """A sum per sample of a column in units of each step's mean size."""
    values = normalised_by_step(visits[column].to_numpy(), visits["step"].to_numpy())
    return np.bincount(row, values)


def _things(visits: pa.Table, row: np.ndarray, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """A name and a number per sample."""
    if GRADIENT_SIZE in visits.column_names:
        yield SIZE, _by_column(visits, row, GRADIENT_SIZE) / np.bincount(row)
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
    return float(np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1])
