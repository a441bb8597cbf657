"""Writes docs/evidence/datamodeling.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datamodeling.cell import Setting
from benchmarks.markdown import fill, markdown
from benchmarks.results_file import RESULTS, environments

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "datamodeling.md"


def write_page() -> None:
    """docs/evidence/datamodeling.md, from the results on disk."""
    stored = json.loads((RESULTS / "datamodeling.json").read_text())
    found: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for key, cell in stored["cells"].items():
        setting = Setting.of(key)
        found.setdefault((setting.rate, setting.epochs), []).append(cell["result"])
    heads = [
        f"{epochs} epochs, rate {rate:g}, seeds: {len(cells)}"
        for (rate, epochs), cells in found.items()
    ]
    methods = next(iter(found.values()))[0]["scores"]
    scores = [
        [name, *(_scores([c["scores"][name] for c in cells]) for cells in found.values())]
        for name in methods
    ]
    rises = [[name, *(_rises(cells, name) for cells in found.values())] for name in methods]
    parts = {
        "SCORES": markdown(["method", *heads], scores),
        "REMOVALS": markdown(["method", *heads], rises),
        "SECONDS": markdown(
            ["", *heads],
            [
                [name, *(f"{np.median([c['seconds'][name] for c in cells]):.1f}"
                         for cells in found.values())]
                for name in next(iter(found.values()))[0]["seconds"]
            ],
        ),
        "ENVIRONMENTS": environments(stored["cells"]),
    }  # fmt: skip
    fill(TEMPLATE, parts, PAGE)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    found: dict[tuple[str, int], list[float]] = {}
    for key, cell in cells.items():
        for method in ("look-ahead", "TracIn, 5 states", "same class"):
            score = cell["result"]["scores"][method]["score"]
            found.setdefault((method, Setting.of(key).epochs), []).append(score)
    return [
        (f"{method}: datamodeling score, {epochs} epochs", f"{np.mean(scores):.3f}", "")
        for (method, epochs), scores in found.items()
    ]


def _scores(rows: list[dict[str, float]]) -> str:
    mean = np.mean([row["score"] for row in rows])
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _rises(cells: list[dict[str, Any]], method: str) -> str:
    """By share: the rise over that of random removals, and in how many seeds above all of them."""
    said = []
    for share in (0.01, 0.05):
        rows = [
            r for c in cells for r in c["removals"] if (r["method"], r["share"]) == (method, share)
        ]
        rise = np.mean([r["rise"] for r in rows])
        chance = np.mean([r["random"] for r in rows])
        above = sum(r["rise"] > r["random_high"] for r in rows)
        said.append(f"{rise:+.4f} ({chance:+.4f}; {above}/{len(rows)})")
    return ", ".join(said)
