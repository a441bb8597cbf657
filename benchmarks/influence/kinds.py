"""The kinds of cells, by the name that a cell's begins with: 'fidelity: task=...'."""

from __future__ import annotations

from typing import Any

from benchmarks.influence.cell import (
    Setting,
    carried_push,
    decay_truth,
    fidelity,
    measured_error,
    proxy,
    published_frame,
    query_by_query,
)
from benchmarks.influence.cost import cost

KINDS = {
    "fidelity": fidelity, "carried": carried_push, "decay": decay_truth,
    "queries": query_by_query, "published": published_frame,
    "error": measured_error, "proxy": proxy, "cost": cost,
}  # fmt: skip


def measure(key: str) -> dict[str, Any]:
    """The cell of that name; here, not in `__main__`, so that a fresh process finds it."""
    kind, _, setting = key.partition(": ")
    return KINDS[kind](Setting.of(setting))
