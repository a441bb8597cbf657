"""Running totals a sample: what `values()` shows, in memory that grows with samples, not steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from inrun.ledger._doubt import relative_error, visit_variances
from inrun.ledger._visits import Extra, Ids, Visits, target_columns, visits_of_step

_NONE_YET = (0, np.iinfo(np.int64).max, np.iinfo(np.int64).min)  # visits, first step, last step


def values_schema(id_type: pa.DataType, targets: Sequence[str], extra: Extra = None) -> pa.Schema:
    """Columns of a table of values; targets only where there are several.

    Args:
        id_type: of the samples.
        targets: the utility's.
        extra: the column that this kind of run has besides.
    """
    return pa.schema(
        [
            ("sample_id", id_type),
            ("value", pa.float64()),
            ("value_normalised", pa.float64()),
            ("visits", pa.int64()),
            ("first_step", pa.int64()),
            ("last_step", pa.int64()),
            *([(extra, pa.float64())] if extra else []),
            *[(target, pa.float64()) for target in target_columns(targets)],
        ]
    )


class Tally:
    """Sums over visits, folded in the order in which they come.

    A visit of a step that stands for n steps counts n times, and leaves a doubt of its own: scored
    with probability 1/n, it adds to the variance of the sum (`_doubt.py`). A visit that momentum
    pays is added when it is paid.
    """

    def __init__(self, targets: Sequence[str], weights: Sequence[float], extra: Extra = None):
        self._targets, self._weights = target_columns(targets), np.asarray(weights, dtype=float)
        self._extra: Extra = extra
        self._row: dict[int | str, int] = {}
        self._sums = np.zeros((3 + len(self._targets), 0))  # value, normalised, targets, extra
        self._steps = np.zeros((3, 0), dtype=np.int64)  # visits, first, last

    def copy(self) -> Tally:
        """The same sums, to be added to on their own."""
        made = Tally((), (), self._extra)
        made._targets, made._weights = self._targets, self._weights
        made._row, made._sums, made._steps = dict(self._row), self._sums.copy(), self._steps.copy()
        return made

    def add(
        self,
        step: int,
        ids: Ids,
        values_BK: np.ndarray,
        weight: float = 1.0,
        paid_BK: np.ndarray | None = None,
    ) -> None:
        """Adds one step's visits; see `visits_of_step`."""
        self.fold(
            visits_of_step(
                step, ids, values_BK, self._weights,
                extra=self._extra, weight=weight, paid_BK=paid_BK,
            )
        )  # fmt: skip

    def fold(self, visits: Visits) -> None:
        """Adds visits, one after the other."""
        if not len(visits.codes):
            return
        rows = self._rows_of(visits.names)[visits.codes]
        columns = visits.numbers
        if self._extra == "standard_error":
            value, weight = columns[0], columns[-1]
            drawn = visit_variances(rows, value, weight, visits.steps)
            columns = [*columns[:-1], drawn]
        for sums, column in zip(self._sums, columns, strict=False):  # the last only with an extra
            np.add.at(sums, rows, column)  # in the order of the visits
        np.add.at(self._steps[0], rows, 1)
        np.minimum.at(self._steps[1], rows, visits.steps)
        np.maximum.at(self._steps[2], rows, visits.steps)

    def state(self) -> pa.Table:
        """Everything, for a checkpoint: `restore` gives the same sums bit for bit."""
        table = self._table(np.asarray)
        if self._extra != "standard_error":
            return table
        return table.rename_columns(
            ["variance" if name == self._extra else name for name in table.column_names]
        )

    def restore(self, table: pa.Table) -> None:
        """Takes over what `state` gave, or an older version's `table`."""
        names = ["value", "value_normalised", *self._targets]
        self._row = {i: row for row, i in enumerate(table["sample_id"].to_pylist())}
        sums = [table[name].to_numpy() for name in names]
        if "variance" in table.column_names:
            sums.append(table["variance"].to_numpy())
        elif self._extra is not None:
            extra = table[self._extra].to_numpy()
            sums.append(extra**2 if self._extra == "standard_error" else extra)
        else:
            sums.append(0.0 * sums[0])
        self._sums = np.stack(sums)
        steps = [table[name].to_numpy() for name in ("visits", "first_step", "last_step")]
        self._steps = np.stack(steps).astype(np.int64)

    @property
    def relative_error(self) -> float:
        """The totals' standard error over their size; see `relative_error`."""
        if self._extra != "standard_error":
            return 0.0
        used = self._sums[:, : len(self._row)]
        return relative_error(used[0], used[-1])

    def _rows_of(self, names: Ids) -> np.ndarray:
        rows = np.fromiter((self._row_of(i) for i in names), dtype=np.int64, count=len(names))
        self._grow()
        return rows

    def _row_of(self, sample_id: int | str) -> int:
        return self._row.setdefault(sample_id, len(self._row))

    def _grow(self) -> None:
        held = self._sums.shape[1]
        short = len(self._row) - held
        if short > 0:
            more = max(short, held, 64)
            self._sums = np.concatenate([self._sums, np.zeros((len(self._sums), more))], 1)
            fresh = np.tile(np.array(_NONE_YET, dtype=np.int64)[:, None], (1, more))
            self._steps = np.concatenate([self._steps, fresh], 1)

    def table(self) -> pa.Table:
        """A row a sample, in the order of ids."""
        return self._table(np.sqrt if self._extra == "standard_error" else np.asarray)

    def _table(self, shown: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
        """A row a sample; `shown` makes the extra column of its sum."""
        ids = list(self._row)
        n = len(ids)
        id_type = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
        schema = values_schema(id_type, self._targets, self._extra)
        sums, steps = self._sums[:, :n], self._steps[:, :n]
        columns: list[object] = [ids, sums[0], sums[1], *steps]
        if self._extra:
            columns.append(shown(sums[-1]))
        columns += list(sums[2:-1])
        arrays = [pa.array(c, type=t) for c, t in zip(columns, schema.types, strict=True)]
        return pa.table(arrays, schema=schema).sort_by("sample_id")
