"""Writes docs/evidence/groups.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datamodeling.cell import Setting
from benchmarks.groups.cell import GROUPS, JOINT, KINDS, PAIRED, SIZE, SUMS
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "groups.md"
WAYS = (*SUMS, JOINT, PAIRED)


def write_page() -> None:
    """docs/evidence/groups.md, from the results on disk."""
    stored = json.loads((RESULTS / "groups.json").read_text())["cells"]
    found = _by_run(stored)
    heads = [
        f"{epochs} epochs, rate {rate:g}, seeds: {len(cells)}"
        for (rate, epochs), cells in found.items()
    ]
    parts = {
        kind.upper(): long_table(
            f"groups_{kind}",
            kind.capitalize(),
            ["", *heads],
            [[way, *(_told(cells, kind, way) for cells in found.values())] for way in WAYS],
        )
        for kind in KINDS
    }
    seconds = next(iter(found.values()))[0]["seconds"]
    parts |= {
        "GROUPS": f"{GROUPS}",
        "SIZE": f"{SIZE}",
        "SECONDS": long_table(
            "groups_seconds", "Seconds by method", ["", *heads],
            [
                [way, *(f"{np.median([c['seconds'][way] for c in cells]):.1f}"
                        for cells in found.values())]
                for way in seconds
            ],
        ),
        "ENVIRONMENTS": environments(stored),
    }  # fmt: skip
    fill(TEMPLATE, parts, PAGE)


def _by_run(stored: Mapping[str, Any]) -> dict[tuple[float, int], list[dict[str, Any]]]:
    found: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for key, cell in stored.items():
        setting = Setting.of(key)
        found.setdefault((setting.rate, setting.epochs), []).append(cell["result"])
    return found


def _told(cells: list[dict[str, Any]], kind: str, way: str) -> str:
    """Medians of Spearman, of the sum over the true sum, and of the error, with its largest."""
    spearman, ratio, error = (
        [cell["found"][kind][way][what] for cell in cells]
        for what in ("spearman", "sum_ratio", "relative_error")
    )
    middle = f"{np.median(spearman):.2f}, {np.median(ratio):.2f}, {np.median(error):.0%}"
    return f"{middle} ({max(error):,.0%})"


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    return [
        (f"{way}: relative error over sources that are left out, {epochs} epochs",
         f"{np.median([c['found']['sources'][way]['relative_error'] for c in results]):.0%}", "")
        for (_, epochs), results in _by_run(cells).items()
        for way in ("sum, look-ahead", JOINT)
    ]  # fmt: skip
