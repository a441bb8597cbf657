"""Writes docs/evidence/mislabelled.md from the cells on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table, markdown
from benchmarks.mislabelled.cell import FOLDS, OURS, Setting
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"

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


def _summary(cells: Cells) -> str:
    rows = []
    for name in next(iter(cells.values()))["found"]:
        auc = [r["found"][name]["auc"] for r in cells.values()]
        precision = np.mean([r["found"][name]["precision"] for r in cells.values()])
        better = sum(a > r["found"]["mean loss"]["auc"] for a, r in zip(auc, cells.values(),
                                                                         strict=True))  # fmt: skip
        rows.append((float(np.mean(auc)), float(precision), better, name))
    rows.sort(reverse=True)
    return markdown(
        ["detector", "AUC", "precision", "better than mean loss"],
        [[_bold(n), f"{a:.4f}", f"{p:.3f}", f"{b} of {len(cells)}"] for a, p, b, n in rows],
    )


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
    return markdown(["", *tasks], rows)
