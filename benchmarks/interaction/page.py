"""Writes docs/evidence/interaction.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interaction.cell import OPTIMIZERS, SAMPLES, STEPS, Setting
from benchmarks.interaction.losses import TASKS
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments

DOCS = Path(__file__).parents[2] / "docs"
GAMES = ("own slots", "left out", "left out, divided anew")
SHOWN = {"sgd": "SGD, momentum 0.9", "adamw": "AdamW"}


def write_page() -> None:
    """Reads what is there and writes the page."""
    cells = json.loads((RESULTS / "interaction.json").read_text())["cells"]
    parts = {
        "SAMPLES": str(SAMPLES),
        "COALITIONS": str(2**SAMPLES),
        "STEPS": " and ".join(str(step) for step in STEPS),
        "SEEDS": str(len({Setting.of(key).seed for key in cells})),
        "CORRELATIONS": long_table(
            "interaction", "R by loss and optimizer", *_rows(cells, "pearson")
        ),
        "ERRORS": long_table(
            "interaction_errors", "Relative error of the values", *_rows(cells, "relative_error")
        ),
        "SIGNS": _signs(cells),
        "RUN": environments(cells),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "interaction.md")


def found(cells: Mapping[str, Any], loss: str, optimizer: str) -> list[dict[str, Any]]:
    """The records of a loss and an optimizer, all seeds and steps."""
    return [
        record
        for key, cell in cells.items()
        if (Setting.of(key).loss, Setting.of(key).optimizer) == (loss, optimizer)
        for record in cell["result"]
    ]


def measured(records: list[dict[str, Any]], game: str, measure: str) -> np.ndarray:
    """One measure of agreement with one game, a number per record."""
    return np.array([record["agreement"][game][measure] for record in records], dtype=float)


def _rows(cells: Mapping[str, Any], measure: str) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, task in TASKS.items():
        for optimizer in OPTIMIZERS:
            records = found(cells, name, optimizer)
            if records:
                each = [_shown(measured(records, game, measure)) for game in GAMES]
                rows.append([task.shown, SHOWN[optimizer], *each])
    return ["loss or layer", "optimizer", *GAMES], rows


def _shown(numbers: np.ndarray) -> str:
    low, middle, high = (_number(n) for n in np.nanpercentile(numbers, [0, 50, 100]))
    return f"**{middle}** ({low} to {high})"


def _number(n: float) -> str:
    return f"{n:.3f}" if abs(n) < 100 else f"{n:,.0f}"


def _signs(cells: Mapping[str, Any]) -> str:
    """In how many samples of a step the value has the left-out value's sign."""
    rows = []
    for name, task in TASKS.items():
        each = []
        for optimizer in OPTIMIZERS:
            records = found(cells, name, optimizer)
            same = [
                np.sign(record["values"]) == np.sign(record["truths"]["left out"])
                for record in records
            ]
            each.append(f"{np.mean(same):.0%}" if same else "")
        rows.append([task.shown, *each])
    head = ["loss or layer", *(SHOWN[name] for name in OPTIMIZERS)]
    return long_table("interaction_signs", "Same sign as with rows left out", head, rows)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for name, task in TASKS.items():
        records = [r for optimizer in OPTIMIZERS for r in found(cells, name, optimizer)]
        each = [
            f"{np.nanmedian(measured(records, game, 'pearson')):.3f}"
            for game in ("own slots", "left out")
        ]
        rows.append((task.shown, ", ".join(each), ""))
    said = "median R with exact values of own slots, and of rows left out"
    return [(f"{rows[0][0]}: {said}", *rows[0][1:]), *rows[1:]]
