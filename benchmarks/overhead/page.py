"""Writes docs/evidence/cost.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.markdown import fill, long_table
from benchmarks.overhead.cell import Cell
from benchmarks.overhead.methods import METHODS, WITH_VALIDATION, Size
from benchmarks.results_file import RESULTS, environments

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "cost.md"
MEGABYTE = 2**20
Found = Mapping[tuple[str, str], Any]
"""By kind and method, a size's results."""


def by_size(cells: Mapping[str, Any]) -> dict[Size, dict[tuple[str, str], Any]]:
    """Results by size, then by kind and method."""
    found: dict[Size, dict[tuple[str, str], Any]] = {}
    for key, stored in cells.items():
        cell = Cell.of(key)
        found.setdefault(cell.size, {})[cell.kind, cell.method] = stored["result"]
    return found


def kept(found: Found, method: str) -> float | None:
    """The share of plain throughput that a method keeps, in the median of turns."""
    one = found.get(("time", method))
    return None if one is None else 1 / float(np.median(one["ratio"]))


def over_validation(found: Found, method: str) -> float | None:
    """A method's time over that of plain training with a validation pass after each step."""
    one, base = kept(found, method), kept(found, WITH_VALIDATION)
    return None if one is None or base is None else base / one


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "overhead.json").read_text())["cells"]
    sizes = by_size(stored)
    told = {size: words_of(size) for size in sizes}
    parts = {
        "KEPT": long_table(
            "cost", "Percent of plain throughput",
            *_table(told, sizes, lambda found, name: _quartiles(found.get(("time", name))))
        ),
        "OVER": long_table(
            "cost_over_validation", "Time over plain + validation",
            *_table(told, sizes, lambda found, name: _number(over_validation(found, name))),
        ),
        "MEMORY": long_table("cost_memory", "Peak memory", *_table(told, sizes, _memory)),
        "MANY": _many(json.loads((RESULTS / "many.json").read_text())["cells"]),
        "WINDOW_MEMORY": _window_memory(json.loads((RESULTS / "window_memory.json").read_text())),
        "RUN": environments(stored),
    }  # fmt: skip
    fill(Path(__file__).parent / "page.md", parts, PAGE)


def words_of(size: Size) -> str:
    """A size with its parameters counted."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in size.model().parameters())
    return f"{size.words}, {parameters / 1e6:.0f} million"


def _table(
    told: Mapping[Size, str], sizes: Mapping[Size, Found], cell: Any
) -> tuple[list[str], list[list[str]]]:
    """One row per size, one column per method that was measured at any."""
    columns = {name: [cell(found, name) for found in sizes.values()] for name in METHODS}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = zip((told[size] for size in sizes), *columns.values(), strict=True)
    return ["size", *columns], [list(row) for row in rows if any(row[1:])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _quartiles(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    high, middle, low = (100 / q for q in np.quantile(one["ratio"], [0.25, 0.5, 0.75]))
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def _memory(found: Found, name: str) -> str:
    one, plain = found.get(("memory", name)), found.get(("memory", "plain"))
    if one is None or plain is None:
        return ""
    return f"{one / MEGABYTE:.0f} ({one / plain:.2f})"


def _many(cells: Mapping[str, Any]) -> str:
    """Steps of many small parameters beside plain ones."""
    rows = []
    for key, cell in cells.items():
        plain, scored = (cell["result"][name] for name in ("plain", "scored"))
        median, mean = (of(scored) / of(plain) for of in (np.median, np.mean))
        commit = cell["environment"]["commit"]
        milliseconds = f"{1e3 * np.median(plain):.0f}", f"{1e3 * np.median(scored):.0f}"
        validated = cell["result"].get("validated")
        over = "" if validated is None else f"{np.median(scored) / np.median(validated):.2f}"
        rows.append([key, *milliseconds, f"{median:.2f}", f"{mean:.2f}", over, commit])
    head = ["parameters", "plain, ms", "scored, ms", "times plain, median", "mean",
            "times plain + validation, median", "commit"]  # fmt: skip
    return long_table("cost_small_steps", "Small steps", head, rows)


def _window_memory(stored: Mapping[str, Any]) -> str:
    """The highest memory of single steps, by way to attribute."""
    found = stored["bytes"]
    plain = found["plain + validation"]
    rows = [
        [way, *(f"{peaks[k] / MEGABYTE:.0f} ({peaks[k] / plain[k]:.2f})" for k in plain)]
        for way, peaks in found.items()
    ]
    head = ["", *(f"{name} step" for name in plain)]
    return long_table("cost_window_memory", "Memory of single steps", head, rows)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for size, found in by_size(cells).items():
        said = "95 % of plain throughput (arXiv 2602.00329)" if not rows else ""
        names = ("window 10", "window 1", "every step")
        shares = [(name, kept(found, name)) for name in names]
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares if share is not None)
        rows.append((f"of plain throughput, {size.words}", told, said))
    return rows
