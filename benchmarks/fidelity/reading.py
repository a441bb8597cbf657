"""The benchmark's records, as tables and plots ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.fidelity.cell import Setting
from benchmarks.results_file import RESULTS

OWN_GAME = {
    "path": "shared",
    "path, attached": "shared",
    "path, stream": "shared",
    "path-smoothed": "shared",
    "path-given": "given",
    "linearized": "given",
    "tangent": "given",
    "sgd": "given",
    "sgd-second": "given",
}

Record = dict[str, Any]
Cells = dict[Setting, list[Record]]


def stored(name: str) -> dict[str, Any]:
    """The cells on disk with their environments; none where the file is missing."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    return found


def cells_of(name: str) -> Cells:
    """Their records."""
    return {Setting.of(key): cell["result"] for key, cell in stored(name).items()}


def plain(cells: Cells) -> Cells:
    """Those that differ in model and seed alone."""
    return {s: r for s, r in cells.items() if s == Setting(s.task, seed=s.seed)}


def pooled(cells: Cells, task: str) -> list[Record]:
    """All records of a model."""
    return [
        record for setting, records in cells.items() if setting.task == task for record in records
    ]


def tasks(cells: Cells) -> list[str]:
    """The models."""
    return list(dict.fromkeys(setting.task for setting in cells))


def values(
    records: Iterable[Record],
    estimator: str,
    measure: str,
    first: int,
    last: int = 10**9,
    game: str | None = None,
) -> np.ndarray:
    """One measure of agreement at the checked steps from first to last, NaN where undefined."""
    game = game or OWN_GAME[estimator]
    found = [
        r["agreement"][estimator][game][measure]
        for r in records
        if first <= r["step"] <= last and estimator in r["agreement"]
    ]
    return np.array([np.nan if x is None else x for x in found], dtype=float)
