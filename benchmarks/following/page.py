"""Writes docs/evidence/following.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.following.cell import BEFORE, ROUNDS
from benchmarks.following.worker import SIZES
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"
SIDES = ("plain", "before", "now")
RATIOS = ("now / before", "before / plain", "now / plain")


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "following.json").read_text())["cells"]
    found = {size: cells[size]["result"] for size in SIZES if size in cells}
    parts = {
        "BEFORE": BEFORE,
        "ROUNDS": str(ROUNDS),
        "TABLE": long_table(
            "following", "Ratios and times by model",
            ["a step of", *RATIOS, *SIDES],
            [[size, *(_ratio(result.get(name)) for name in RATIOS),
              *(_time(result.get(name)) for name in SIDES)]
             for size, result in found.items()],
        ),
        "FAILED": _failed(found),
        "RUN": environments(cells),
    }  # fmt: skip
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "following.md")


def _ratio(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return "-"
    middle, low, high = quartiles
    return f"**{middle:.3f}** ({low:.3f} to {high:.3f})"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f} ms"


def _failed(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Versions that cannot train a size, in their own words."""
    lines = [
        f"- {size}, *{side}*: {said.removeprefix('failed: ')}"
        for size, result in found.items()
        for side, said in result["failed"].items()
    ]
    return "\n".join(lines) or "None."


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    return [
        (f"{size}: a step over that of the version before", f"{ratio[0]:.2f}", "")
        for size, cell in cells.items()
        if (ratio := cell["result"].get("now / before"))
    ]
