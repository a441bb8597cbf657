"""Writes docs/evidence/form.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import CLAIMS
from benchmarks.compared import require
from benchmarks.form.cell import BATCH, EPOCHS, METHODS, RATE, Experiment, left_out
from benchmarks.form.rows import ALONE
from benchmarks.markdown import EVIDENCE, fill, long_table, markdown
from benchmarks.results_file import RESULTS, environments

TRUTH = "trained again without them"
RELATIONS = {
    (True, True): "same task, same format",
    (True, False): "same task, other format",
    (False, True): "other task, same format",
    (False, False): "other task, other format",
}


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "form.json").read_text())["cells"]
    results = [cell["result"] for cell in stored.values()]
    experiment = Experiment(0)
    right = [part["right"] for r in results for part in r["answered"].values()]
    truth, ours = (content_to_form(results, how) for how in HOW[:2])
    own = [ratio for r in results for ratio in r["own fact"][METHODS[0]]]
    require(truth > 2 and ours < 1.5 and np.mean(own) < 0.1, CLAIMS["form"].claim)
    parts = {
        "ROWS": str(len(experiment.rows.answers)),
        "ASKED": str(len(experiment.asked.answers)),
        "ALONE": str(ALONE),
        "GONE": str(len(left_out(experiment, experiment.groups[0]))),
        "EPOCHS": str(EPOCHS),
        "BATCH": str(BATCH),
        "RATE": f"{RATE:g}",
        "SEEDS": str(len(results)),
        "RIGHT": f"{np.mean(right):.0%}",
        "TABLE": _table(results),
        "OWN": markdown(
            ["method", "mean rank over that of chance", "range"],
            [[method, *_owned(results, method)] for method in METHODS],
        ),
        "RUN": environments(stored),
        **{f"RATIO_{n}": f"{content_to_form(results, how):.1f}" for n, how in enumerate(HOW)},
    }
    fill(Path(__file__).with_name("page.md"), parts, EVIDENCE / "form.md")


HOW = (TRUTH, *METHODS)


def effects(results: list[dict[str, Any]], how: str) -> dict[str, list[float]]:
    """By relation of the rows to the question: what they took off its loss, per seed and group."""
    found: dict[str, list[float]] = {name: [] for name in RELATIONS.values()}
    for result in results:
        table = result["retrained"] if how == TRUTH else result["sums"][how]
        for group, targets in table.items():
            for target, effect in targets.items():
                (task, form), (own_task, own_form) = target.split(), group.split()
                found[RELATIONS[task == own_task, form == own_form]].append(effect)
    return found


def content_to_form(results: list[dict[str, Any]], how: str) -> float:
    """The mean effect of rows that share the task alone over that of those that share the format.

    Their sizes are compared, where the sign is not what it should be.
    """
    found = effects(results, how)
    content, form = (np.mean(found[RELATIONS[key]]) for key in ((True, False), (False, True)))
    return float(content / form)


def _table(results: list[dict[str, Any]]) -> str:
    columns = {how: effects(results, how) for how in HOW}
    rows = [
        [
            name,
            *(
                f"{np.mean(found[name]):+.2f} ({min(found[name]):+.2f} to {max(found[name]):+.2f})"
                for found in columns.values()
            ),
        ]
        for name in RELATIONS.values()
    ]
    return long_table("form", "Effect by group of rows", ["rows of the", *HOW], rows)


def _owned(results: list[dict[str, Any]], method: str) -> tuple[str, str]:
    each = [ratio for result in results for ratio in result["own fact"][method]]
    return f"{np.mean(each):.2f}", f"{min(each):.2f} to {max(each):.2f}"


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    results = [cell["result"] for cell in cells.values()]
    rows = [
        (f"{how}: effect of the same task over that of the same format",
         f"{content_to_form(results, how):.1f}", "")
        for how in HOW[:2]
    ]  # fmt: skip
    what = "path, total: mean rank of a question's own facts in the other format, over chance's"
    return [*rows, (what, _owned(results, METHODS[0])[0], "")]
