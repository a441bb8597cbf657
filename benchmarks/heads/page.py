"""Writes docs/evidence/heads.md from the cells on disk."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.heads.cell import LAYERS, MEGABYTE, ROWS, STEPS, TOKENS, VOCABULARY, WAYS, WIDTH
from benchmarks.markdown import fill, markdown
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "heads.json").read_text())["cells"]
    peaks = {way: cells[way]["result"]["peak_bytes"] for way in WAYS if way in cells}
    rows = [
        [WAYS[way], f"{peak / MEGABYTE:,.0f}", f"{peak / peaks['fused']:.3f}"]
        for way, peak in peaks.items()
    ]
    parts = {
        "SHAPE": f"{VOCABULARY:,} words, {ROWS} x {TOKENS} tokens, {STEPS} steps, a Llama of "
        f"{LAYERS} layers and width {WIDTH}",
        "LOGITS": f"{4 * VOCABULARY * ROWS * TOKENS / MEGABYTE:,.0f}",
        "PEAKS": markdown(["training", "peak, MB", "of the fused head's"], rows),
        "RUN": environments(cells),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "heads.md")
