"""Writes docs/evidence/budget.md and its plot from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.budget.cell import WAYS
from benchmarks.markdown import fill, long_table
from benchmarks.payout.cell import NOISE, Setting
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    "Sampled": "fewer steps", "Budget": "fewer steps, found by itself",
    "validation_parts": "parts of the rows", "validation_every": "old gradient",
    "Window": "windows", "stream": "stream",
}  # fmt: skip

Cells = dict[Setting, dict[str, Any]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "budget.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    here = Path(__file__).parent
    parts = {
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "CHOICES": _choices(cells),
        "NOISE": f"{NOISE:.0%}",
        "SUMMARY": _summary(cells),
        "TABLES": _tables(cells),
        "PLOT": "![Agreement with scoring everything, against overhead](../img/budget.svg)",
        "RUN": environments(stored),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "budget.md")
    _plot(cells, DOCS / "img" / "budget.svg")


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(s.task for s in cells))


def _mean(cells: Cells, task: str, way: str, what: str) -> float:
    return float(np.mean([r[way][what] for s, r in cells.items() if s.task == task]))


def _ways(cells: Cells) -> list[str]:
    """Those that all cells have."""
    return [way for way in WAYS if all(way in result for result in cells.values())]


def _choices(cells: Cells) -> str:
    """What the budgets of the first seed settled on, in their own words."""
    told = [
        f"  - {s.task}, `{way}`: {result[way]['choice']}."
        for s, result in cells.items()
        for way in _ways(cells)
        if s.seed == 0 and result[way].get("choice")
    ]
    old = "  - these cells are older than its choice of windows, and do not say what it chose."
    return "\n".join(told or [old])


def _summary(cells: Cells) -> str:
    """Overhead and R of the totals, one row per way."""
    rows = []
    for way in _ways(cells):
        each = (
            f"{_mean(cells, t, way, 'overhead'):+.0%}, {_mean(cells, t, way, 'pearson'):.3f}"
            for t in _tasks(cells)
        )
        rows.append([way, *each])
    return long_table("budget_ways", "Overhead and R by way", ["way", *_tasks(cells)], rows)


def _tables(cells: Cells) -> str:
    rows = [[task, *row] for task in _tasks(cells) for row in _table(cells, task)]
    head = [
        "data", "way", "overhead", "R", "Spearman", "R of groups", "AUC", "steps scored",
        "stated error",
    ]  # fmt: skip
    return long_table("budget", "Every data set and way", head, rows)


def _table(cells: Cells, task: str) -> list[list[str]]:
    rows = []
    for way in _ways(cells):
        told = {
            w: _mean(cells, task, way, w)
            for w in (
                "overhead",
                "pearson",
                "spearman",
                "auc",
                "groups",
                "scored",
                "relative_error",
            )
        }
        error = f"{told['relative_error']:.0%}" if told["relative_error"] else ""
        rows.append([
            way, f"{told['overhead']:+.0%}", f"{told['pearson']:.3f}", f"{told['spearman']:.3f}",
            f"{told['groups']:.3f}", f"{told['auc']:.3f}", f"{told['scored']:.0%}", error,
        ])  # fmt: skip
    return rows


def _plot(cells: Cells, path: Path) -> None:
    charts = []
    for task in _tasks(cells):
        rows = [
            {
                "way": way,
                "kind": "both" if "Sampled" in way and "parts" in way else next(
                    (said for start, said in KINDS.items() if way.startswith(start)), "every step"
                ),
                "overhead": max(0.005, _mean(cells, task, way, "overhead")),
                "R": _mean(cells, task, way, "pearson"),
            }
            for way in _ways(cells)
        ]  # fmt: skip
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X(
                "overhead:Q", title="overhead", scale=alt.Scale(type="log"),
                axis=alt.Axis(format="%"),
            ),
            y=alt.Y("R:Q", title="R of the totals", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("kind:N", title=None),
        )  # fmt: skip
        points = base.mark_point(filled=True, size=60)
        charts.append(points.properties(width=260, height=200, title=task))
    chart = alt.hconcat(*charts).configure_view(stroke=None).configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""

    def mean(way: str, what: str) -> float:
        return float(np.mean([cell["result"][way][what] for cell in cells.values()]))

    return [
        (f"`{shown}`: R of the totals with scoring everything", f"{mean(way, 'pearson'):.3f}", "")
        for way, shown in (
            ("validation_parts=2", "validation_parts=2"),
            ("validation_parts=10", "validation_parts=10"),
            ("Sampled(5)", "scoring=inrun.Sampled(5)"),
            ("stream", "stream"),
        )
    ]
