"""Writes docs/soak.md from the cells on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown
from benchmarks.results_file import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "soak.md"


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "soak.json").read_text())["cells"]
    text = (Path(__file__).parent / "page.md").read_text()
    environment = list(cells.values())[-1]["environment"]
    run = (
        f"Commit {environment['commit']}, PyTorch {environment['torch']}, Python "
        f"{environment['python']}, one thread of {environment['cores']} cores, "
        f"{environment['gpu'] or 'no GPU'}"
    )
    tables = "\n\n".join(_section(key, cell["result"]) for key, cell in cells.items())
    PAGE.write_text(text.replace("{{RUN}}", run).replace("{{TABLES}}", tables))


def _section(key: str, found: dict[str, Any]) -> str:
    capture, steps = key.split()
    head = ("up to step", "a step, processor time", "memory", "tensors alive")
    rows = [
        (
            f"{s['step']:,}",
            f"{s['milliseconds']:.1f} ms",
            f"{s['megabytes']:.0f} MB",
            str(s["tensors"]),
        )
        for s in found["stretches"]
    ]
    return (
        f"## capture='{capture}', {int(steps):,} steps\n\n{markdown(head, rows)}\n\n"
        f"Stored: {found['steps_stored']:,} steps and {found['visits_stored']:,} of "
        f"{found['visits_made']:,} visits, {found['store_megabytes']:.1f} MB; the books' residual "
        f"is {found['residual_share']:.2%} of their entries."
    )
