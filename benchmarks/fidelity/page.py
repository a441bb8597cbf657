"""Writes docs/evidence/fidelity.md and its plots from the cells on disk."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fidelity import plots, tables
from benchmarks.fidelity.reading import cells_of, plain, stored
from benchmarks.markdown import fill

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
        "RUN": tables.run(stored("fidelity")),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "fidelity.md")
