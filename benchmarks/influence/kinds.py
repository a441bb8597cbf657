"""The kinds of cells, by the name that a cell's begins with: 'fidelity: task=...'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.influence.cell import (
    Setting,
    damped,
    decay_truth,
    fidelity,
    measured_error,
    proxy,
    published_frame,
    query_by_query,
)
from benchmarks.influence.cost import cost

KINDS = {
    "fidelity": fidelity, "damped": damped, "decay": decay_truth,
    "queries": query_by_query, "published": published_frame,
    "error": measured_error, "proxy": proxy, "cost": cost,
}  # fmt: skip


def measure(key: str) -> dict[str, Any]:
    """The cell of that name; here, not in `__main__`, so that a fresh process finds it."""
    kind, _, setting = key.partition(": ")
    return KINDS[kind](Setting.of(setting))


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    kinds = (("damped", "look-ahead"), ("damped", "look-ahead, carried push"),
             ("fidelity", "SGD dynamics"), ("fidelity", "TracIn, 5 states"))  # fmt: skip
    for kind, method in kinds:
        found = [
            cell["result"]["methods"][method]["spearman"]
            for key, cell in cells.items()
            if key.startswith(f"{kind}: ") and method in cell["result"]["methods"]
        ]
        low, middle, high = np.percentile(found, [0, 50, 100])
        what = f"`{method}`: Spearman with retraining, {len(found)} cells, median (range)"
        said = "10 % to over 300 % above SGD (arXiv 2605.18814)"
        elsewhere = said if method == "look-ahead" else ""
        rows.append((what, f"{middle:.3f} ({low:.3f} to {high:.3f})", elsewhere))
    return rows
