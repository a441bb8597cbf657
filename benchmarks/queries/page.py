"""Writes docs/evidence/queries.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import fill, long_table, markdown
from benchmarks.queries.cell import STEPS, Setting
from benchmarks.results_file import RESULTS, environments

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "queries.md"
SIZES = {"LoRA of 5 million": 5e6, "135 million": 135e6, "1.5 billion": 1.5e9}  # parameters
NUMBER, CARD = 4, 80e9  # bytes of a float32, and of a large GPU


def write_page() -> None:
    """docs/evidence/queries.md, from the results on disk."""
    stored = json.loads((RESULTS / "queries.json").read_text())["cells"]
    copies = max(tensors(record) for _, record in _cells(stored) if record["queries"] >= 64)
    parts = {
        "TABLE": long_table(
            "queries", "By model and number of queries",
            ["model", "parameters", "queries", "seconds", "seconds per query",
             "times as fast as one at a time", "tensors per query"],
            [_row(stored, setting, record) for setting, record in _cells(stored)],
        ),
        "STEPS": f"{STEPS}",
        "COPIES": f"{copies:.0f}",
        "SIZES": markdown(
            ["parameters", "three tensors per query, GB", f"{copies:.0f} tensors, GB",
             "queries at once in 80 GB"],
            [
                [name, f"{3 * NUMBER * size / 1e9:,.2f}", f"{copies * NUMBER * size / 1e9:,.1f}",
                 f"{CARD / (copies * NUMBER * size):,.0f}" if copies * NUMBER * size < CARD
                 else "none"]
                for name, size in SIZES.items()
            ],
        ),
        "ENVIRONMENTS": environments(stored),
    }  # fmt: skip
    fill(TEMPLATE, parts, PAGE)


def _cells(stored: Mapping[str, Any]) -> list[tuple[Setting, dict[str, Any]]]:
    settings = [(Setting.of(key), cell["result"]) for key, cell in stored.items()]
    return [(setting, record | {"queries": setting.queries}) for setting, record in settings]


def tensors(record: Mapping[str, Any]) -> float:
    """By how many tensors of the model's size a query made the process grow."""
    size = NUMBER * record["parameters"] * record["queries"]
    return float(record["grown_bytes"] / size)


def _faster(stored: Mapping[str, Any], setting: Setting, record: Mapping[str, Any]) -> float:
    alone = stored[Setting(setting.task, 1).key]["result"]["seconds"]
    return float(alone * setting.queries / record["seconds"])


def _row(stored: Mapping[str, Any], setting: Setting, record: Mapping[str, Any]) -> list[str]:
    return [
        setting.task, f"{record['parameters']:,}", f"{setting.queries}",
        f"{record['seconds']:.2f}", f"{record['seconds'] / setting.queries:.4f}",
        f"{_faster(stored, setting, record):.1f}",
        f"{tensors(record):.0f}" if setting.queries >= 64 else "",
    ]  # fmt: skip


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    most = max(setting.queries for setting, _ in _cells(cells))
    return [
        (f"{setting.task}: {most} queries at once, times as fast as one at a time",
         f"{_faster(cells, setting, record):.1f}", "")
        for setting, record in _cells(cells) if setting.queries == most
    ]  # fmt: skip
