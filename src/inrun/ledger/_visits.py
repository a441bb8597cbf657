"""Visits as they are stored and summed: one row is one sample in one step.

A live run's running totals and a stored run's sums are made of the same numbers in the same order,
so that both are the same bit for bit. Letters: B visits, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

Ids = list[int] | list[str]

Extra = Literal["standard_error", "paid_out"] | None
"""A column that only some runs have: where some steps alone are scored, or momentum is paid out."""


def target_columns(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets that get a column: none where there is only one, it would repeat the total."""
    return tuple(targets) if len(targets) > 1 else ()


def visits_schema(id_type: pa.DataType, targets: Sequence[str], extra: Extra = None) -> pa.Schema:
    """Columns of stored visits.

    Args:
        id_type: of the samples.
        targets: the utility's.
        extra: where it is 'standard_error', `weight` says how many steps the visit's stands for.
    """
    last = {"standard_error": ["weight"], "paid_out": ["paid_out"], None: []}[extra]
    numbers = ["value", "value_normalised", *target_columns(targets), *last]
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
    columns of `visits_schema` after the id, each (B,) float64.
    """

    steps: np.ndarray
    names: Ids
    codes: np.ndarray
    numbers: list[np.ndarray]

    @property
    def ids(self) -> pa.Array:
        """Each visit's id."""
        return pa.array(self.names).take(pa.array(self.codes))

    def table(self, schema: pa.Schema) -> pa.Table:
        """The visits in the columns of `visits_schema`."""
        return pa.table([pa.array(self.steps), self.ids, *self.numbers], schema=schema)


def visits_of_step(
    step: int,
    ids: Ids,
    values_BK: np.ndarray,
    target_weights: np.ndarray,
    *,
    extra: Extra = None,
    weight: float = 1.0,
    paid_BK: np.ndarray | None = None,
) -> Visits:
    """One step's visits.

    Args:
        step: its number.
        ids: of its samples.
        values_BK: theirs, everything in them.
        target_weights: of the targets in the total, (K,).
        extra: the column that this kind of run has besides.
        weight: how many steps the step stands for.
        paid_BK: how much of the values momentum paid out.
    """
    total = _weighted(values_BK, target_weights)
    numbers = [weight * total, weight * normalised(total)]
    if len(target_weights) > 1:
        numbers += [weight * np.ascontiguousarray(column) for column in values_BK.T]
    if extra == "standard_error":
        numbers.append(np.full(len(ids), float(weight)))
    if extra == "paid_out":
        numbers.append(0 * total if paid_BK is None else _weighted(paid_BK, target_weights))
    return Visits(np.full(len(ids), step, dtype=np.int64), ids, np.arange(len(ids)), numbers)


def stored_visits(table: pa.Table) -> Visits:
    """The visits of a table in the columns of `visits_schema`."""
    encoded = table["sample_id"].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Visits(
        table["step"].to_numpy(),
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy().astype(np.int64),
        [table[name].to_numpy() for name in table.column_names[2:]],
    )


def _weighted(values_BK: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The targets' weighted sum, (B,), added up in their order: the same on every machine."""
    total = np.zeros(len(values_BK))
    for column, weight in zip(values_BK.T, weights, strict=True):
        total = total + column * weight
    return total
