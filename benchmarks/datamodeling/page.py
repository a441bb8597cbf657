"""Writes docs/evidence/datamodeling.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datamodeling.cell import CHOSEN_ON, SHOWN, TRAININGS, WEIGHT, Setting
from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "datamodeling.md"
CEILING = "ceiling of any sums"
Runs = Mapping[tuple[str, float, int], list[tuple[Setting, dict[str, Any]]]]


def write_page() -> None:
    """docs/evidence/datamodeling.md, from the results on disk."""
    stored = json.loads((RESULTS / "datamodeling.json").read_text())["cells"]
    digits, mnist = _runs(stored, "digits"), _runs(stored, "mnist")
    parts = {
        "DIGITS": _scores(digits, "digits"),
        "MNIST": _scores(mnist, "mnist"),
        "WAY": _way(digits),
        "REMOVALS": long_table(
            "datamodeling_removals",
            "Rise by method and training",
            ["method", *map(_head, digits)],
            [[name, *(_rises(runs, name) for runs in digits.values())] for name in SHOWN],
        ),
        "SECONDS": long_table(
            "datamodeling_seconds",
            "Seconds by method and training",
            ["", *map(_head, digits), *map(_head, mnist)],
            [
                [name, *(_seconds(runs, name) for runs in [*digits.values(), *mnist.values()])]
                for name in (*SHOWN, "trainings without halves")
            ],
        ),
        "WEIGHT": f"{WEIGHT:g}",
        "TRAININGS": f"{TRAININGS}",
        "CHOSEN": f"{CHOSEN_ON}",
        "DATTRI": _dattri(stored),
        "ENVIRONMENTS": environments(stored),
    }
    fill(TEMPLATE, parts, PAGE)


def _runs(stored: Mapping[str, Any], task: str) -> Runs:
    """Settings and results by task, rate and epochs."""
    found: dict[tuple[str, float, int], list[tuple[Setting, dict[str, Any]]]] = {}
    for key, cell in stored.items():
        if ": " in key:
            continue
        own = Setting.of(key)
        if own.task.startswith(task):
            runs = found.setdefault((own.task, own.rate, own.epochs), [])
            runs.append((own, cell["result"]))
    return dict(sorted(found.items()))


def _head(run: tuple[str, float, int]) -> str:
    task, rate, epochs = run
    return f"{task}: {epochs} epochs, rate {rate:g}"


def _scores(runs: Runs, task: str) -> str:
    heads = [f"{_head(run)}, seeds: {len(cells)}" for run, cells in runs.items()]
    rows = [[name, *(_score(cells, name) for cells in runs.values())] for name in SHOWN]
    ceilings = [np.mean([cell["ceiling"] for _, cell in cells]) for cells in runs.values()]
    rows.append([CEILING, *(f"{c:.3f}" for c in ceilings)])
    caption = f"Scores on {task} by method and training"
    return long_table(f"datamodeling_{task}", caption, ["method", *heads], rows)


def _score(cells: list[tuple[Setting, dict[str, Any]]], name: str) -> str:
    rows = [cell["scores"][name] for _, cell in cells if name in cell["scores"]]
    if not rows:
        return "not asked"
    each = ", ".join(f"{row['score']:.3f}" for row in rows)
    half = max(row["high"] - row["low"] for row in rows) / 2
    return f"{each} (±{half:.2f})"


def _dattri(stored: Mapping[str, Any]) -> str:
    """Its methods beside ours, of the same seeds and halves."""
    pairs = {
        _head((own.task, own.rate, own.epochs)): (cell["result"], stored[own.key]["result"])
        for key, cell in stored.items()
        if key.startswith("dattri: ")
        for own in [Setting.of(key.removeprefix("dattri: "))]
    }
    if not pairs:
        return "Not measured yet."
    theirs = next(iter(pairs.values()))[0]["scores"]
    rows = [
        [name, *(f"{found['scores'][name]['score']:.3f}" for found, _ in pairs.values())]
        for name in theirs
    ]
    rows += [
        [name, *(f"{ours['scores'][name]['score']:.3f}" for _, ours in pairs.values())]
        for name in ("look-ahead", "look-ahead, between")
    ]
    rows.append(["dattri: seconds", *(f"{found['seconds']:.1f}" for found, _ in pairs.values())])
    return long_table("datamodeling_dattri", "Scores beside dattri's", ["", *pairs], rows)


def _way(runs: Runs) -> str:
    """On the seed that the weight was chosen on: other weights, and the mean for the median."""
    found = {
        run: cell["scores"]
        for run, cells in runs.items()
        for own, cell in cells
        if own.seed == CHOSEN_ON
    }
    names = dict.fromkeys(name for scores in found.values() for name in scores)
    rows = [
        [name, *(f"{scores[name]['score']:.3f}" for scores in found.values())]
        for name in names
        if name.startswith("look-ahead") and "finite" not in name
    ]
    return long_table("datamodeling_way", "Scores by weight", ["", *map(_head, found)], rows)


def _seconds(cells: list[tuple[Setting, dict[str, Any]]], name: str) -> str:
    seconds = [cell["seconds"][name] for _, cell in cells if name in cell["seconds"]]
    return f"{np.median(seconds):.1f}" if seconds else ""


def _rises(cells: list[tuple[Setting, dict[str, Any]]], method: str) -> str:
    """By share: the rise over that of random removals, and in how many seeds above all of them."""
    said = []
    for share in (0.01, 0.05):
        rows = [
            r
            for _, cell in cells
            for r in cell["removals"]
            if (r["method"], r["share"]) == (method, share)
        ]
        rise = np.mean([r["rise"] for r in rows])
        chance = np.mean([r["random"] for r in rows])
        above = sum(r["rise"] > r["random_high"] for r in rows)
        said.append(f"{rise:+.4f} ({chance:+.4f}; {above}/{len(rows)})")
    return ", ".join(said)


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for (_, _, epochs), runs in _runs(cells, "digits").items():
        for method in ("look-ahead", "look-ahead, between", "TracIn", "same class"):
            scores = ", ".join(f"{cell['scores'][method]['score']:.3f}" for _, cell in runs)
            rows.append((f"{method}: datamodeling score by seed, {epochs} epochs", scores, ""))
        ceiling = np.mean([cell["ceiling"] for _, cell in runs])
        what = f"{CEILING}: datamodeling score by seed, {epochs} epochs"
        rows.append((what, f"{ceiling:.3f} on the average", ""))
    return rows
