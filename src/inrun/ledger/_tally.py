"""Running totals a sample: what `values()` shows, in memory that grows with samples, not steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from inrun.ledger._doubt import relative_error, visit_variances

Ids = list[int] | list[str]


Extra = Literal["standard_error", "paid_out"] | None
"""A column that only some runs have: where some steps alone are scored, or momentum is paid out."""


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


def target_columns(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets that get a column: none where there is only one, it would repeat the total."""
    return tuple(targets) if len(targets) > 1 else ()


def normalised(values: np.ndarray) -> np.ndarray:
    """Values of one step in units of their mean size, so that early steps do not outweigh."""
    size = float(np.abs(values).mean()) if values.size else 0.0
    return values / size if size > 0 else np.zeros_like(values)


class Tally:
    """Sums over visits.

    A visit of a step that stands for n steps counts n times, and leaves a doubt of its own: scored
    with probability 1/n, it adds to the variance of the sum (`_doubt.py`).
    A visit that momentum pays out later is corrected by what it was paid.
    """

    def __init__(self, targets: Sequence[str], weights: Sequence[float], extra: Extra = None):
        self._targets, self._weights = tuple(targets), np.asarray(weights)
        self._extra = extra
        self._row: dict[int | str, int] = {}
        self._sums = np.zeros((0, 3 + len(self._targets)))  # value, normalised, extra, targets
        self._steps = np.zeros((0, 3), dtype=np.int64)  # visits, first, last

    def add(self, step: int, ids: Ids, values_BK: np.ndarray, weight: float = 1.0) -> None:
        """Adds one step's visits; the step stands for `weight` steps."""
        total = values_BK @ self._weights
        rows = self._rows_of(ids)
        variance = visit_variances(rows, weight * total, np.asarray(weight))
        columns = np.column_stack([
            weight * total, weight * normalised(total), variance, weight * values_BK
        ])  # fmt: skip
        np.add.at(self._sums, rows, columns)
        np.add.at(self._steps[:, 0], rows, 1)
        new = rows[self._steps[rows, 1] < 0]
        self._steps[new, 1] = step
        self._steps[rows, 2] = step

    def pay_out(self, ids: Ids, values_BK: np.ndarray, paid_BK: np.ndarray) -> None:
        """Adds what momentum paid to the visits of a step that was added before.

        Args:
            ids: of its visits.
            values_BK: as they were added.
            paid_BK: what is added to them.
        """
        before, paid = values_BK @ self._weights, paid_BK @ self._weights
        more = normalised(before + paid) - normalised(before)
        columns = np.column_stack([paid, more, paid, paid_BK])
        np.add.at(self._sums, self._rows_of(ids), columns)

    def restore(self, table: pa.Table) -> None:
        """Takes over the totals of a table that `table` gave."""
        names = ["value", "value_normalised", *self._targets]
        if len(self._targets) == 1:
            names[2] = "value"  # the only target is the total
        self._row = {i: row for row, i in enumerate(table["sample_id"].to_pylist())}
        sums = [table[name].to_numpy() for name in names]
        extra = table[self._extra].to_numpy() if self._extra else 0.0 * sums[0]
        sums.insert(2, extra**2 if self._extra == "standard_error" else extra)
        self._sums = np.column_stack(sums)
        steps = [table[name].to_numpy() for name in ("visits", "first_step", "last_step")]
        self._steps = np.column_stack(steps).astype(np.int64)

    @property
    def relative_error(self) -> float:
        """The totals' standard error over their size; see `relative_error`."""
        if self._extra != "standard_error":
            return 0.0
        used = self._sums[: len(self._row)]
        return relative_error(used[:, 0], used[:, 2])

    def _rows_of(self, ids: Ids) -> np.ndarray:
        rows = np.fromiter((self._row_of(i) for i in ids), dtype=np.int64, count=len(ids))
        self._grow()
        return rows

    def _row_of(self, sample_id: int | str) -> int:
        return self._row.setdefault(sample_id, len(self._row))

    def _grow(self) -> None:
        short = len(self._row) - len(self._sums)
        if short > 0:
            more = max(short, len(self._sums), 64)
            self._sums = np.concatenate([self._sums, np.zeros((more, self._sums.shape[1]))])
            fresh = np.tile(np.array([[0, -1, -1]], dtype=np.int64), (more, 1))
            self._steps = np.concatenate([self._steps, fresh])

    def table(self) -> pa.Table:
        """A row a sample, in the order of ids."""
        ids = list(self._row)
        text = bool(ids) and isinstance(ids[0], str)
        n = len(ids)
        id_type = pa.string() if text else pa.int64()
        schema = values_schema(id_type, self._targets, self._extra)
        columns: list[object] = [ids, self._sums[:n, 0], self._sums[:n, 1]]
        columns += [self._steps[:n, i] for i in range(3)]
        if self._extra:
            extra = self._sums[:n, 2]
            columns.append(np.sqrt(extra) if self._extra == "standard_error" else extra)
        columns += [self._sums[:n, 3 + k] for k in range(len(target_columns(self._targets)))]
        arrays = [pa.array(c, type=t) for c, t in zip(columns, schema.types, strict=True)]
        return pa.table(arrays, schema=schema).sort_by("sample_id")
