"""A stored run, judged by other weights of its targets than those that it was scored with.

Values are linear in the utility, V = sum over k of weight_k V_k: with x_k a visit's stored value
for target k, and e_k an entry of a step's books for it,

    value = sum over k of weight_k x_k,        entry = sum over k of weight_k e_k

so that values and books under other weights are exact, without training again. Letters: K targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.ledger._books import LEDGER, TOTAL
from inrun.ledger._run import Run
from inrun.ledger._running_totals import normalised
from inrun.utility import HALF


class JudgedRun(Run):
    """The run under other weights; everything that it is asked for is recomputed from the files.

    Of a run with a momentum window, `paid_out` is not known (NaN) by visit: it was stored of the
    total alone. The books have it. The same goes for `HALF`, whose rows have the run's own weights.
    """

    def __init__(self, path: Path, parts: dict[str, list[Path]], weights: Mapping[str, float]):
        super().__init__(path, parts)
        self._given = dict(weights)

    @property
    def weights(self) -> dict[str, float]:
        """What each target counts in the total; they add up to 1."""
        return self._given

    def _visits(self) -> Iterator[pa.Table]:
        for table in super()._visits():
            total = sum(w * table[name].to_numpy() for name, w in self._given.items())
            step = table["step"].to_numpy()
            size = table["weight"].to_numpy() if self.extra == "standard_error" else 1.0
            scaled = np.asarray(size * normalised_by_step(total / size, step))
            table = _with(table, value=total, value_normalised=scaled)
            for name in {"paid_out", HALF} & set(table.column_names):
                table = _with(table, **{name: np.full(table.num_rows, np.nan)})
            yield table

    def books(self) -> pa.Table:
        """The ledgers of all targets and of their total, one row per step and target."""
        stored = super().books()
        target = np.array(stored["target"].to_pylist(), dtype=object)
        step = stored["step"].to_numpy()
        total, changed = target == TOTAL, {}
        place = {s: row for row, s in enumerate(step[total].tolist())}
        numbers = [f.name for f in LEDGER if pa.types.is_floating(f.type) and f.name != "weight"]
        for name in numbers:
            column, sums = stored[name].to_numpy(), np.zeros(int(total.sum()))
            for one, weight in self._given.items():
                rows = np.flatnonzero(target == one)
                sums[[place[s] for s in step[rows].tolist()]] += weight * column[rows]
            column = column.copy()
            column[total] = sums
            changed[name] = column
        return _with(stored, **changed)


def judged(run: Run, weights: Mapping[str, float]) -> Run:
    """A stored run with its targets weighed otherwise; see `Run.judged_by`."""
    names = run.targets
    if len(names) < 2:
        raise MisuseError(
            "The run has one target, so there is nothing to weigh. Train with one target per class."
        )
    given = {str(name): float(weight) for name, weight in weights.items()}
    total = sum(given.values())
    if (
        set(given) != set(names)
        or not all(w >= 0 for w in given.values())
        or not 0 < total < np.inf
    ):
        raise MisuseError(
            f"weights must give each target ({', '.join(names)}) a number of at least 0, and not "
            "all of them 0."
        )
    return JudgedRun(run.path, run.parts, {name: given[name] / total for name in names})


def normalised_by_step(total: np.ndarray, step: np.ndarray) -> np.ndarray:
    """`normalised` of each step's values, by the visits' steps, both (B,)."""
    found = np.zeros_like(total)
    order = np.argsort(step, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(step[order])) + 1):
        found[rows] = normalised(total[rows])
    return found


def _with(table: pa.Table, **columns: Any) -> pa.Table:
    """The table with other numbers in some columns; NaN stays NaN."""
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        array = pa.array(column, pa.float64(), from_pandas=False)
        table = table.set_column(place, table.schema.field(place), array)
    return table
