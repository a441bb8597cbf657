"""Writes docs/evidence/soak.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "soak.md"


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "soak.json").read_text())["cells"]
    found = {key: cell["result"] for key, cell in cells.items()}
    parts = {"RUN": environments(cells), "SUMMARY": _summary(found), "TABLES": _tables(found)}
    fill(Path(__file__).parent / "page.md", parts, PAGE)


def _summary(found: dict[str, dict[str, Any]]) -> str:
    """First and last tenth of each run, and its store."""
    rows = []
    for key, result in found.items():
        first, last = result["stretches"][0], result["stretches"][-1]
        rows.append([
            key.split()[0],
            f"{first['milliseconds']:.1f}, {last['milliseconds']:.1f} ms",
            f"{first['megabytes']:.0f}, {last['megabytes']:.0f} MB",
            f"{first['tensors']}, {last['tensors']}",
            f"{result['visits_stored']:,} of {result['visits_made']:,}",
            f"{result['store_megabytes']:.1f} MB",
            f"{result['residual_share']:.2%}",
        ])  # fmt: skip
    head = [
        "capture", "processor time of a step: first, last tenth", "memory", "tensors alive",
        "visits stored", "store", "residual",
    ]  # fmt: skip
    return long_table("soak_tenths", "First and last tenth", head, rows)


def _tables(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        [key.split()[0], f"{s['step']:,}", f"{s['milliseconds']:.1f} ms",
         f"{s['megabytes']:.0f} MB", str(s["tensors"])]
        for key, result in found.items()
        for s in result["stretches"]
    ]  # fmt: skip
    head = ["capture", "up to step", "processor time of a step", "memory", "tensors alive"]
    return long_table("soak", "Every tenth of both runs", head, rows)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for key, cell in cells.items():
        capture, steps = key.split()
        stretches = cell["result"]["stretches"]
        first, last = stretches[0], stretches[-1]
        what = f"`{capture}`, {int(steps):,} steps: last tenth beside the first"
        ours = ", ".join(
            f"{last[name] / first[name]:.2f} times the {said}"
            for name, said in (("milliseconds", "time a step"), ("megabytes", "memory"))
        )
        rows.append((what, ours, ""))
    return rows
