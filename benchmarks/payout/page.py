"""Writes docs/evidence/payout.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table
from benchmarks.payout.cell import NOISE, WINDOWS, Setting
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"

Cells = dict[Setting, dict[str, Any]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "payout.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    here = Path(__file__).parent
    ahead = ["look-ahead, the whole run", *_row(cells, lambda r: r["look-ahead auc"], ".3f")]
    parts = {
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "NOISE": f"{NOISE:.0%}",
        "AUC": _table(
            cells,
            {"raw": ("auc", ".3f"), "normalised": ("auc_normalised", ".3f")},
            "payout_auc",
            [ahead],
        ),
        "LOOK": _table(cells, {"": ("look_ahead", ".3f")}, "payout_lookahead"),
        "BOOKS": _table(
            cells,
            {"samples": ("samples", ".2f"), "momentum": ("momentum", ".2f")},
            "payout_parts",
        ),
        "COST": _table(cells, {"time": ("time", ".2f"), "MB": ("bytes", "")}, "payout_cost"),
        "RUN": environments(stored),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "payout.md")


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(s.task for s in cells))


def _row(cells: Cells, number: Callable[[Any], float], form: str) -> list[str]:
    means = (
        float(np.mean([number(r) for s, r in cells.items() if s.task == t])) for t in _tasks(cells)
    )
    return [format(mean, form) if form else f"{mean / 1e6:.1f}" for mean in means]


def _table(
    cells: Cells, columns: dict[str, tuple[str, str]], name: str,
    more: list[list[str]] | None = None,
) -> str:  # fmt: skip
    """One row per window and column, and further rows."""
    rows = [
        [
            f"momentum_window={window}" + (f", {said}" if said else ""),
            *_row(cells, lambda r, w=window, k=key: r[str(w)][k], form),  # type: ignore[misc]
        ]
        for said, (key, form) in columns.items()
        for window in WINDOWS
    ]
    return long_table(name, "By window", ["", *_tasks(cells)], [*rows, *(more or [])])


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""

    def mean(window: int, what: str) -> float:
        return float(np.mean([cell["result"][str(window)][what] for cell in cells.values()]))

    return [
        (
            f"AUC of the total value for wrong labels, without and with momentum_window={window}",
            f"{mean(0, 'auc'):.3f}, {mean(window, 'auc'):.3f}",
            "",
        )
        for window in (20, 40)
    ]
