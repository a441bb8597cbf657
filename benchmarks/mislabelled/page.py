"""Writes docs/evidence/mislabelled.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS
from benchmarks.compared import Gain, above, below, by_seed, compared, require
from benchmarks.markdown import fill, long_table
from benchmarks.mislabelled.cell import FOLDS, OURS, Setting
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"

LOSS, BOTH, TOTAL = "mean loss", "mean loss + margin", "path, total"

Cells = dict[Setting, dict[str, Any]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "mislabelled.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    here = Path(__file__).parent
    parts = {
        "FOLDS": str(FOLDS),
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "CELLS": str(len(cells)),
        **findings(cells),
        "SUMMARY": _summary(cells),
        "AUC": _table(cells, "auc", lambda r, n: r["found"][n]["auc"], "found", 4),
        "PRECISION": _table(
            cells, "precision", lambda r, n: r["found"][n]["precision"], "found", 3
        ),
        "SUGGESTED": _table(cells, "suggested", lambda r, n: r["suggested"][n], "suggested", 3),
        "COST": _cost(cells),
        "RUN": environments(stored),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "mislabelled.md")


def _settings(cells: Cells) -> list[tuple[str, float]]:
    found = {(s.task, s.noise) for s in cells}
    tasks = list(dict.fromkeys(s.task for s in cells))
    return sorted(found, key=lambda pair: (tasks.index(pair[0]), pair[1]))


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name


def against(cells: Cells, control: str, figure: str) -> dict[str, Gain]:
    """Gains over another detector; the clusters are the draws, one per data set and seed."""

    def gains(name: str) -> list[float]:
        return by_seed(
            cells.items(),
            lambda c: (c[0].task, c[0].seed),
            lambda c: c[1]["found"][name][figure] - c[1]["found"][control][figure],
        )

    names = [name for name in next(iter(cells.values()))["found"] if name != control]
    return compared({name: gains(name) for name in names})


def findings(cells: Cells) -> dict[str, str]:
    """What the data say, in words.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    loss, precision, both = (
        against(cells, control, figure)
        for control, figure in ((LOSS, "auc"), (LOSS, "precision"), (BOTH, "auc"))
    )
    holds = OURS in above(loss) and OURS not in {*above(precision), *above(both)}
    holds = holds and {TOTAL, "path, harm"} <= set(below(loss))
    require(holds, CLAIMS["mislabelled"].claim)
    totals = {
        task: float(np.mean([r["found"][TOTAL]["auc"] for s, r in cells.items() if s.task == task]))
        for task in dict.fromkeys(s.task for s in cells)
    }
    return {
        "DRAWS": str(len({(s.task, s.seed) for s in cells})),
        "P_BOTH": f"{both[OURS].p:.3f}",
        "OURS_LOSS": loss[OURS].told(4),
        "OURS_BOTH": both[OURS].told(4),
        "OURS_PRECISION": precision[OURS].told(3),
        "TOTALS": ", ".join(f"{auc:.3f} on {task}" for task, auc in totals.items()),
    }


def _summary(cells: Cells) -> str:
    found = {figure: against(cells, LOSS, figure) for figure in ("auc", "precision")}
    rows = []
    for name in next(iter(cells.values()))["found"]:
        row: list[str] = [_bold(name)]
        for (figure, gains), digits in zip(found.items(), (4, 3), strict=True):
            mean = np.mean([r["found"][name][figure] for r in cells.values()])
            told = f"{gains[name].told(digits)} ({gains[name].p:.3f})" if name in gains else ""
            row += [f"{mean:.{digits}f}", told]
        rows.append(row)
    rows.sort(key=lambda row: row[1], reverse=True)
    head = ["detector", "AUC", f"over `{LOSS}`", "precision", f"over `{LOSS}`"]
    return long_table("mislabelled", "AUC and precision by detector", head, rows)


def _table(cells: Cells, figure: str, number: Any, part: str, digits: int) -> str:
    settings = _settings(cells)
    rows = []
    for name in next(iter(cells.values()))[part]:
        each = [
            float(np.mean([number(r, name) for s, r in cells.items() if (s.task, s.noise) == pair]))
            for pair in settings
        ]
        rows.append((float(np.mean(each)), name, each))
    rows.sort(reverse=True)
    head = ["", *(f"{task}, {noise:.0%}" for task, noise in settings), "mean"]
    return long_table(
        f"mislabelled_{figure}",
        f"{figure.capitalize() if figure != 'auc' else 'AUC'} by detector, data set and noise",
        head,
        [[_bold(n), *(f"{x:.{digits}f}" for x in each), f"{m:.{digits}f}"] for m, n, each in rows],
    )


def _cost(cells: Cells) -> str:
    tasks = list(dict.fromkeys(s.task for s in cells))
    names = {
        "path": "the training, with values for every class",
        "cross-validation": f"{FOLDS} further trainings, for cleanlab",
    }
    rows = [
        [said, *(f"{np.mean([r['seconds'][key] for s, r in cells.items() if s.task == t]):.1f}"
                 for t in tasks)]
        for key, said in names.items()
    ]  # fmt: skip
    return long_table("mislabelled_seconds", "Seconds", ["", *tasks], rows)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for detector in ("label doubts", "mean loss", "margin (AUM)", "cleanlab, self-confidence"):
        auc = np.mean([cell["result"]["found"][detector]["auc"] for cell in cells.values()])
        rows.append((f"`{detector}`: AUC, mean of {len(cells)} cells", f"{auc:.4f}", ""))
    return rows
