"""Writes docs/evidence/window.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.window.cell import Setting

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "window.md"
SHOWN = ("steps", "pearson", "pearson_trimmed", "spearman", "sum_ratio", "cosine")


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "window.json").read_text())["cells"]
    found: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for key, cell in stored.items():
        setting = Setting.of(key.partition(": ")[2])
        found.setdefault((setting.task, setting.rate, setting.steps), []).append(cell["result"])
    rows = [
        [task, f"{rate:g}", steps, *(f"{np.median([r[n] for r in results]):.3f}" for n in SHOWN),
         f"{min(r['pearson'] for r in results):.3f}"]
        for (task, rate, steps), results in found.items()
    ]  # fmt: skip
    head = [
        "task",
        "rate",
        "window",
        "steps in the mean",
        "R",
        "R without the 1 % largest",
        "Spearman",
        "sum",
        "cosine",
    ]
    parts = {
        "AGREEMENT": long_table(
            "window", "Agreement by task, rate and window", [*head, "lowest R of a seed"], rows
        ),
        "ENVIRONMENTS": environments(stored),
    }
    fill(TEMPLATE, parts, PAGE)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    auto: dict[tuple[str, float], list[float]] = {}
    for key, cell in cells.items():
        if (setting := Setting.of(key.partition(": ")[2])).steps == "auto":
            auto.setdefault((setting.task, setting.rate), []).append(cell["result"]["spearman"])
    return [
        (f"`auto`, {task}, rate {rate:g}: Spearman with `EveryStep`", f"{np.median(found):.3f}", "")
        for (task, rate), found in auto.items()
    ]
