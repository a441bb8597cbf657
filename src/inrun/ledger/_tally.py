"""Running totals a sample: what `values()` shows, in memory that grows with samples, not steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

Ids = list[int] | list[str]


def values_schema(id_type: pa.DataType, targets: Sequence[str]) -> pa.Schema:
    """Columns of a table of values; targets only where there are several."""
    return pa.schema(
        [
            ("sample_id", id_type),
            ("value", pa.float64()),
            ("value_normalised", pa.float64()),
            ("visits", pa.int64()),
            ("first_step", pa.int64()),
            ("last_step", pa.int64()),
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
    """Sums over visits."""

    def __init__(self, targets: Sequence[str], weights: Sequence[float]):
        self._targets, self._weights = tuple(targets), np.asarray(weights)
        self._row: dict[int | str, int] = {}
        self._sums = np.zeros((0, 2 + len(self._targets)))  # value, normalised, targets
        self._steps = np.zeros((0, 3), dtype=np.int64)  # visits, first, last

    def add(self, step: int, ids: Ids, values_BK: np.ndarray) -> None:
        """Adds one step's visits."""
        total = values_BK @ self._weights
        rows = np.fromiter((self._row_of(i) for i in ids), dtype=np.int64, count=len(ids))
        self._grow()
        columns = np.column_stack([total, normalised(total), values_BK])
        np.add.at(self._sums, rows, columns)
        np.add.at(self._steps[:, 0], rows, 1)
        new = rows[self._steps[rows, 1] < 0]
        self._steps[new, 1] = step
        self._steps[rows, 2] = step

    def restore(self, table: pa.Table) -> None:
        """Takes over the totals of a table that `table` gave."""
        names = ["value", "value_normalised", *self._targets]
        if len(self._targets) == 1:
            names[2] = "value"  # the only target is the total
        self._row = {i: row for row, i in enumerate(table["sample_id"].to_pylist())}
        self._sums = np.column_stack([table[name].to_numpy() for name in names])
        steps = [table[name].to_numpy() for name in ("visits", "first_step", "last_step")]
        self._steps = np.column_stack(steps).astype(np.int64)

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
        schema = values_schema(pa.string() if text else pa.int64(), self._targets)
        n = len(ids)
        columns: list[object] = [ids, self._sums[:n, 0], self._sums[:n, 1]]
        columns += [self._steps[:n, i] for i in range(3)]
        columns += [self._sums[:n, 2 + k] for k in range(len(target_columns(self._targets)))]
        arrays = [pa.array(c, type=t) for c, t in zip(columns, schema.types, strict=True)]
        return pa.table(arrays, schema=schema).sort_by("sample_id")
