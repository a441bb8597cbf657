"""Writes docs/evidence/poison.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import EVIDENCE, fill, markdown
from benchmarks.poison.cell import (
    AHEAD,
    LESS,
    REMOVED,
    TOTAL,
    TRACED,
    WANTED,
    Scale,
    Setting,
)
from benchmarks.poison.texts import PHRASE, QUERIES, TESTED
from benchmarks.results_file import RESULTS, environments

CHANCE, EXACT = "random rows", "the planted rows"
Cells = Mapping[tuple[str, float], list[dict[str, Any]]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "poison.json").read_text())["cells"]
    cells = by_case(stored)
    heads = [
        f"{trigger}, {share:.0%} ({found[0]['planted']} of {found[0]['rows']})"
        for (trigger, share), found in cells.items()
    ]
    seconds = {
        name: np.median([found["seconds"][name] for part in cells.values() for found in part])
        for name in next(iter(cells.values()))[0]["seconds"]
    }
    names = list(next(iter(cells.values()))[0]["recall"])
    parts = {
        "SIZE": str(Scale().size),
        "EPOCHS": str(Scale().epochs),
        "RATE": f"{Scale().rate:g}",
        "LOOKED": str(Scale().looked),
        "WANTED": WANTED,
        "PHRASE": PHRASE,
        "QUERIES": str(QUERIES),
        "TESTED": str(TESTED),
        "TRACED": TRACED,
        "LESS": LESS.removeprefix(", "),
        "TOTAL": TOTAL,
        "SEEDS": ", ".join(str(len(found)) for found in cells.values()),
        "RECALL": markdown(
            ["ranked by", *heads], [[name, *_recalls(cells, name)] for name in _ordered(cells)]
        ),
        "BEHAVIOUR": markdown(
            ["removed, as many as were planted", *heads],
            [[name, *_behaviours(cells, name)] for name in ("nothing", EXACT, *REMOVED, CHANCE)],
        ),
        "UNTRIGGERED": _range(cells, "without trigger"),
        "SECONDS": ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items()),
        "RUN": environments(stored),
    }
    assert set(names) == set(_ordered(cells))
    fill(Path(__file__).with_name("page.md"), parts, EVIDENCE / "poison.md")


def by_case(stored: Mapping[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Results by trigger and share."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for key, cell in stored.items():
        setting = Setting.of(key)
        found.setdefault((setting.trigger, setting.share), []).append(cell["result"])
    return found


def _ordered(cells: Cells) -> list[str]:
    """Rankings, the best over all cases first."""
    every = [found for part in cells.values() for found in part]
    names = every[0]["recall"]
    return sorted(names, key=lambda name: -np.mean([f["recall"][name]["1k"] for f in every]))


def _recalls(cells: Cells, name: str) -> list[str]:
    """Mean over seeds, with the range, of the recall at k; the mean at 2k."""
    told = []
    for found in cells.values():
        first, second = ([f["recall"][name][at] for f in found] for at in ("1k", "2k"))
        told.append(
            f"{np.mean(first):.2f} ({min(first):.2f} to {max(first):.2f}), {np.mean(second):.2f}"
        )
    return told


def _behaviours(cells: Cells, name: str) -> list[str]:
    told = []
    for found in cells.values():
        attack = [attack_success(f, name) for f in found]
        right = [np.mean([p["accuracy"] for p in _parts(f, name)]) for f in found]
        told.append(
            f"{np.mean(attack):.0%} ({min(attack):.0%} to {max(attack):.0%}), {np.mean(right):.0%}"
        )
    return told


def _parts(found: Mapping[str, Any], name: str) -> list[dict[str, float]]:
    """The trainings of that name; all removals by chance together."""
    chosen = "random " if name == CHANCE else name
    behaviour = found["behaviour"]
    if name != CHANCE:
        return [behaviour[chosen]]
    return [part for other, part in behaviour.items() if other.startswith(chosen)]


def attack_success(found: Mapping[str, Any], name: str) -> float:
    """After a removal, by its name; that by chance is the mean of its draws."""
    return float(np.mean([part["attack success"] for part in _parts(found, name)]))


def _range(cells: Cells, what: str) -> str:
    every = [
        part[what] for found in cells.values() for f in found for part in f["behaviour"].values()
    ]
    return f"{min(every):.0%} to {max(every):.0%}"


def summary(stored: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for (trigger, share), found in by_case(stored).items():
        case = f"{trigger}, {share:.0%}"
        for name in (TOTAL + LESS, TRACED, AHEAD + LESS, "words of the queries", "mean loss"):
            recall = np.mean([f["recall"][name]["1k"] for f in found])
            rows.append((f"{case}, {name}: recall@k of planted rows", f"{recall:.2f}", ""))
        left = ", ".join(
            f"{np.mean([attack_success(f, name) for f in found]):.0%}"
            for name in ("nothing", TOTAL + LESS, CHANCE)
        )
        rows.append((f"{case}: attack success, all rows, without the first k, random", left, ""))
    return rows
