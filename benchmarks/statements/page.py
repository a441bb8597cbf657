"""Writes docs/evidence/statements.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, markdown
from benchmarks.results_file import RESULTS, environments
from benchmarks.statements import sections
from benchmarks.statements.cell import DROPPED, SURE, TRAININGS, Setting

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "statements.md"


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "statements.json").read_text())["cells"]
    cells = _by_setting(stored)
    parts = {
        "TRAININGS": str(TRAININGS),
        "OTHERS": str(TRAININGS - 1),
        "CONFIDENCE": f"{SURE:.0%}",
        "DROPPED": str(DROPPED),
        "JUDGES": _judges(cells),
        "SURE": _sure(cells),
        "AGAIN": _again(cells),
        "RUN": environments(stored),
        **sections.parts(),
    }
    fill(Path(__file__).parent / "page.md", parts, PAGE)


Cells = dict[Setting, dict[str, Any]]


def _groups(cells: Cells) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for setting, cell in cells.items():
        for judge, result in cell.items():
            name = f"{setting.shares}, {setting.noise:.0%} wrong"
            found.setdefault((name, judge), []).append(result)
    return found


def _by_setting(stored: Mapping[str, Any]) -> Cells:
    return {Setting.of(key): cell["result"] for key, cell in stored.items()}


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    said = []
    for (name, judge), results in _groups(_by_setting(cells)).items():
        for told in ("auc", "largest class harmful"):
            if number := _mean(results, told):
                said.append((f"{name}, judged {judge}: {told}", number, ""))
    return said


def _mean(results: list[dict[str, Any]], name: str) -> str:
    numbers = [x for result in results for x in result[name]]
    return f"{np.mean(numbers):.3f}" if numbers else ""


def _judges(cells: Cells) -> str:
    names = ("auc", "largest class harmful", "other validation set")
    rows = [[*key, *(_mean(r, name) for name in names)] for key, r in _groups(cells).items()]
    return markdown(["data", "judged", *names], rows)


def _sum(results: list[dict[str, Any]], visits: str, name: str) -> float:
    return float(sum(sum(result["visits"][visits][name]) for result in results))


def _sure(cells: Cells) -> str:
    rows = []
    for key, results in _groups(cells).items():
        for visits in ("8", "16"):
            claims = _sum(results, visits, "claims")
            told = [_sum(results, visits, n) for n in ("stated", "mean of others", "next")]
            rows.append([*key, visits, f"{claims:.0f}", *(f"{x / claims:.3f}" for x in told)])
    head = ["data", "judged", "visits", "claims", "stated", "mean of others", "next"]
    return markdown(head, rows)


def _again(cells: Cells) -> str:
    rows = []
    for key, results in _groups(cells).items():
        for visits in ("8", "16"):
            count = sum(len(r["visits"][visits]["claims"]) for r in results)
            told = [_sum(results, visits, n) for n in ("expected positive", "positive again")]
            rows.append([*key, visits, *(f"{x / count:.2f}" for x in told)])
    return markdown(["data", "judged", "visits", "expected", "came"], rows)
