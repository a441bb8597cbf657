"""Visits as they are stored and summed: one row is one sample in one step.

A live run's running totals and a stored run's sums are made of the same numbers in the same order,
so that both are the same bit for bit; their memory grows with samples, not with steps.

Where only some steps are scored, totals are in doubt (Horvitz and Thompson, 1952). A step that is
scored with probability 1/n stands for n, and its visits x = n * value come together or not at all.
With X_s the sum of one sample's visits in step s, its total and the total's variance are both
without bias:

    total = sum over scored steps of X_s,      variance = sum over them of (1 - 1/n) X_s^2

Totals themselves are too large in the mean of their squares, by just that variance.
Letters: B visits, K targets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

Ids = list[int] | list[str]
_NONE_YET = (0, np.iinfo(np.int64).max, np.iinfo(np.int64).min)  # visits, first step, last step

Extra = Literal["standard_error", "paid_out"] | None
"""A column that only some runs have: where some steps alone are scored, or momentum is paid out."""


def target_columns(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets that get a column: none where there is only one, it would repeat the total."""
    return tuple(targets) if len(targets) > 1 else ()


GRADIENT_SIZE = "gradient_size"
"""The column of each visit's own gradient's norm, of runs that were asked for it."""


def visits_schema(
    id_type: pa.DataType, targets: Sequence[str], extra: Extra = None, *, sized: bool = False
) -> pa.Schema:
    """Columns of stored visits; `weight` is how many steps the visit's step stands for."""
    last = {"standard_error": ["weight"], "paid_out": ["paid_out"], None: []}[extra]
    numbers = ["value", "value_normalised", *target_columns(targets), *last]
    numbers += [GRADIENT_SIZE] * sized
    return pa.schema(
        [("step", pa.int64()), ("sample_id", id_type), *((name, pa.float64()) for name in numbers)]
    )


def normalised(values: np.ndarray) -> np.ndarray:
    """Values of one step in units of their mean size, so that early steps do not outweigh."""
    size = float(np.abs(values).mean()) if values.size else 0.0
    return values / size if size > 0 else np.zeros_like(values)


class Visits(NamedTuple):
    """Visits in their order.

    `names` are ids, each once, and `codes` (B,) says which one a visit's is; `numbers` are the
    columns of `visits_schema` after the id, each (B,) float64, but for `sizes`, the gradients'.
    """

    steps: np.ndarray
    names: Ids
    codes: np.ndarray
    numbers: list[np.ndarray]
    sizes: np.ndarray | None = None

    def table(self, schema: pa.Schema) -> pa.Table:
        """The visits in the columns of `visits_schema`."""
        ids = pa.array(self.names).take(pa.array(self.codes))
        sizes = [] if self.sizes is None else [self.sizes]
        return pa.table([pa.array(self.steps), ids, *self.numbers, *sizes], schema=schema)


def visits_of_step(
    step: int,
    ids: Ids,
    values_BK: np.ndarray,
    target_weights: np.ndarray,
    *,
    extra: Extra = None,
    weight: float = 1.0,
    paid_BK: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> Visits:
    """One step's visits, whose values have everything in them.

    `target_weights` (K,) are of the targets in the total; `weight` is how many steps the step
    stands for, `paid_BK` how much of the values momentum paid out, `sizes` (B,) are of the samples'
    own gradients, where they are kept.
    """
    total = _weighted(values_BK, target_weights)
    numbers = [weight * total, weight * normalised(total)]
    if len(target_weights) > 1:
        numbers += [weight * np.ascontiguousarray(column) for column in values_BK.T]
    if extra == "standard_error":
        numbers.append(np.full(len(ids), float(weight)))
    if extra == "paid_out":
        numbers.append(0 * total if paid_BK is None else _weighted(paid_BK, target_weights))
    steps = np.full(len(ids), step, dtype=np.int64)
    return Visits(steps, ids, np.arange(len(ids)), numbers, sizes)


def stored_visits(table: pa.Table) -> Visits:
    """The visits of a table in the columns of `visits_schema`."""
    encoded = table["sample_id"].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Visits(
        table["step"].to_numpy(),
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy().astype(np.int64),
        [table[name].to_numpy() for name in table.column_names[2:] if name != GRADIENT_SIZE],
    )


def _weighted(values_BK: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The targets' weighted sum, (B,), added up in their order: the same on every machine."""
    total = np.zeros(len(values_BK))
    for column, weight in zip(values_BK.T, weights, strict=True):
        total = total + column * weight
    return total


def visit_variances(
    samples: np.ndarray, values: np.ndarray, weights: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """What each visit adds to the variance of its sample's total; all (N,).

    `samples` are numbers, the same for visits of one sample; `values` are times the step's weight,
    `weights` how many steps the step stands for. A sample's visits of one step (`steps`) come or
    stay away together.
    """
    if not len(values):
        return values
    pairs = (steps - steps.min()) * (samples.max() + 1) + samples
    _, inverse = np.unique(pairs, return_inverse=True)
    together = np.bincount(inverse, values)[inverse]
    variances: np.ndarray = (1 - 1 / weights) * values * together
    return variances


def relative_error(totals: np.ndarray, variances: np.ndarray) -> float:
    """The standard error of totals over their true size, both root mean squares.

    Infinite where sampling leaves nothing to tell the size by; 0 where there is no doubt.

    Example:
        >>> import numpy as np
        >>> relative_error(np.array([10.0, 10.0]), np.array([90.0, 90.0]))  # one visit of ten each
        3.0
    """
    doubt = float(np.sum(variances))
    size = float(np.square(totals).sum()) - doubt
    if doubt <= 0:
        return 0.0
    return math.sqrt(doubt / size) if size > 0 else math.inf


def values_schema(id_type: pa.DataType, targets: Sequence[str], extra: Extra = None) -> pa.Schema:
    """Columns of a table of values; targets only where there are several."""
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


class RunningTotals:
    """Sums over visits, folded in the order in which they come.

    A visit of a step that stands for n steps counts n times, and leaves a doubt of its own: scored
    with probability 1/n, it adds to the variance of the sum. A visit that momentum
    pays is added when it is paid.
    """

    def __init__(self, targets: Sequence[str], weights: Sequence[float], extra: Extra = None):
        self._targets, self._weights = target_columns(targets), np.asarray(weights, dtype=float)
        self._extra: Extra = extra
        self._row: dict[int | str, int] = {}
        self._sums = np.zeros((3 + len(self._targets), 0))  # value, normalised, targets, extra
        self._steps = np.zeros((3, 0), dtype=np.int64)  # visits, first, last

    def copy(self) -> RunningTotals:
        """The same sums, to be added to on their own."""
        return copy.deepcopy(self)

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
        row, held = self._row, self._sums.shape[1]
        rows = np.array([row.setdefault(i, len(row)) for i in names], dtype=np.int64)
        short = len(self._row) - held
        if short > 0:
            more = max(short, held, 64)
            self._sums = np.concatenate([self._sums, np.zeros((len(self._sums), more))], 1)
            fresh = np.tile(np.array(_NONE_YET, dtype=np.int64)[:, None], (1, more))
            self._steps = np.concatenate([self._steps, fresh], 1)
        return rows

    def table(self) -> pa.Table:
        """One row per sample, in the order of ids."""
        return self._table(np.sqrt if self._extra == "standard_error" else np.asarray)

    def _table(self, shown: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
        """One row per sample; `shown` makes the extra column of its sum."""
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
