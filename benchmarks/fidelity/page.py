"""Writes docs/evidence/fidelity.md and its plots from the cells on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity import plots, tables
from benchmarks.fidelity.reading import cells_of, plain, stored, values
from benchmarks.markdown import fill
from benchmarks.results_file import environments

CLOSED = 5  # the step from which on the page of all benchmarks sums up
DOCS = Path(__file__).parents[2] / "docs"


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells, ablation = cells_of("fidelity"), cells_of("fidelity_ablation")
    base, img = plain(cells), DOCS / "img"
    img.mkdir(parents=True, exist_ok=True)
    plots.steps(base, img / "fidelity-steps.svg")
    plots.rates(cells, img / "fidelity-rates.svg")
    plots.stretches(ablation, img / "fidelity-stretches.svg")
    plots.points(ablation, img / "fidelity-points.svg")
    parts = {
        "TARGETS": tables.targets(base),
        "SUMMARY": tables.summary(base),
        "TABLE": tables.agreement(base),
        "GAMES": tables.games(base),
        "OTHERWISE": tables.trained_otherwise(cells),
        "DIPS": tables.dips(base),
        "RUN": environments(stored("fidelity")),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "fidelity.md")


def summary(_: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    chosen = plain(cells_of("fidelity"))
    records = [record for found in chosen.values() for record in found]
    models = len({setting.task for setting in chosen})
    where = f"median R over {models} models, from step {CLOSED} on"
    rows = []
    for name, what, elsewhere in (
        ("path, attached", "`path` as attached", ""),
        ("linearized", "`linearized`, the published estimator", "> 0.99 (arXiv 2602.00329)"),
        ("sgd", "`sgd` under AdamW", "about 0.11 (arXiv 2602.00329)"),
    ):
        median = np.nanmedian(values(records, name, "pearson", CLOSED))
        rows.append((f"{what}: {where}", f"{median:.4f}", elsewhere))
    return rows
