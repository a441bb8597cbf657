"""Writes docs/evidence/explain.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.explain.cell import BAD, KINDS, LASTS, SOURCES, STEPS, B
from benchmarks.markdown import fill, long_table, markdown
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"
ASKED = ("explain", "gradient norm", "validation loss", "training loss")
NO_ROWS = ("gradient norm", "validation loss")


def count(cells: dict[str, Any], asked: str, what: str, kind: str = "") -> tuple[int, int]:
    """In how many cells of a kind who was asked was right, and how many there are."""
    chosen = [c["result"][asked][what] for key, c in cells.items() if key.startswith(kind)]
    return sum(chosen), len(chosen)


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "explain.json").read_text())["cells"]
    rows = []
    for asked in ASKED:
        told = ["step", *(() if asked in NO_ROWS else ("rows", "source"))]
        found = ["{} of {}".format(*count(cells, asked, what)) for what in told]
        rows.append([asked, *found, *[""] * (3 - len(found))])
    kinds = [
        [kind, *("/".join(str(count(cells, a, w, kind)[0]) for w in ("step", "rows", "source"))
                 for a in ("explain", "training loss")),
         *(str(count(cells, a, "step", kind)[0]) for a in NO_ROWS)]
        for kind in KINDS
    ]  # fmt: skip
    head = ["planted", *(f"{a}: step/rows/source" for a in ("explain", "training loss"))]
    parts = {
        "SUMS": markdown(["asked", "step", "rows", "source"], rows),
        "KINDS": long_table(
            "explain", "By kind", [*head, *(f"{a}: step" for a in NO_ROWS)], kinds
        ),
        "STEPS": str(STEPS), "B": str(B), "SOURCES": str(SOURCES), "BAD": str(BAD),
        "LASTS": str(LASTS), "EACH": str(count(cells, "explain", "step", KINDS[0])[1]),
        "RUN": environments(cells),
    }  # fmt: skip
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "explain.md")


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for asked in ("explain", "training loss", "validation loss", "gradient norm"):
        found = [cell["result"][asked] for cell in cells.values()]
        told = ("step",) if asked in NO_ROWS else ("step", "rows", "source")
        each = ", ".join(f"{sum(one[what] for one in found)}" for what in told)
        rows.append((f"`{asked}`: {', '.join(told)} right, of {len(found)}", each, ""))
    return rows
