"""Writes docs/evidence/heads.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.heads.cell import LAYERS, MEGABYTE, ROWS, STEPS, TOKENS, VOCABULARY, WAYS, WIDTHS
from benchmarks.markdown import fill, markdown
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "heads.json").read_text())["cells"]
    rows = []
    for width in WIDTHS:
        found = {way: cells[f"{width}: {way}"]["result"] for way in WAYS
                 if f"{width}: {way}" in cells}  # fmt: skip
        for way, cell in found.items():
            peak, alone = cell["peak_bytes"], found["fused"]["peak_bytes"]
            ratio = f"{peak / alone:.3f}"
            seconds = f"{cell['seconds']:.1f}"
            rows.append([str(width), WAYS[way], f"{peak / MEGABYTE:,.0f}", ratio, seconds])
    head = ["width", "training", "peak, MB", "of the fused head's", "processor time, s"]
    parts = {
        "SHAPE": f"{VOCABULARY:,} words, {ROWS} x {TOKENS} tokens, {STEPS} steps, a Llama of "
        f"{LAYERS} layers",
        "LOGITS": f"{4 * VOCABULARY * ROWS * TOKENS / MEGABYTE:,.0f}",
        "PEAKS": markdown(head, rows),
        "RUN": environments(cells),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "heads.md")


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for key, cell in cells.items():
        width, way = key.split(": ")
        alone = cells[f"{width}: fused"]["result"]["peak_bytes"]
        if way != "fused":
            what = f"{WAYS[way]}, width {width}: peak memory over training alone"
            rows.append((what, f"{cell['result']['peak_bytes'] / alone:.3f}", ""))
    return rows
