"""Writes docs/evidence/optimizers.md from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table
from benchmarks.optimizers.cell import STEPS, Setting
from benchmarks.optimizers.makers import MAKERS, ORTHOGONAL, SIGN
from benchmarks.results_file import RESULTS, environments

MOVING = 8  # the step from which on the page of all benchmarks sums up
DOCS = Path(__file__).parents[2] / "docs"
FROM = 8
TASKS = {"mlp-mnist": "MLP on MNIST", "gpt2-brown": "GPT-2 config on the Brown corpus"}
TARGET = {SIGN: 0.98, ORTHOGONAL: 0.98}
USUAL = 0.999

Record = dict[str, Any]
Cells = dict[Setting, list[Record]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "optimizers.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    parts = {
        "PLAYERS": "six",
        "STEPS": ", ".join(str(step) for step in STEPS[6] if step >= FROM),
        "SUMMARY": _summary(cells),
        "TABLES": _tables(cells),
        "SHORT": _short(cells),
        "RUN": environments(stored),
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "optimizers.md")


def _of(records: Iterable[Record], way: str, measure: str, *, late: bool = True) -> np.ndarray:
    """One measure of one way over the checked steps, from `FROM` on or before it."""
    found = [r["estimates"][way][measure] for r in records if (r["step"] >= FROM) == late]
    return np.array(found, dtype=float)


def _summary(cells: Cells) -> str:
    """R as attached on both models, one row per optimizer."""
    rows = []
    for name, maker in MAKERS.items():
        row = [maker.shown]
        for task in TASKS:
            records = cells.get(Setting(task, name, 6))
            found = _of(records, "attached", "pearson") if records else None
            row.append("-" if found is None else f"{np.median(found):.4f} ({found.min():.4f})")
        rows.append(row)
    return long_table("optimizers_attached", "R as attached", ["optimizer", *TASKS.values()], rows)


def _tables(cells: Cells) -> str:
    """Everything measured, on both models, and with twelve samples on the first."""
    rows = []
    for task, players in (*((task, 6) for task in TASKS), ("mlp-mnist", 12)):
        of = f"{TASKS[task]}, {players} samples per step"
        rows += [[of, *row] for row in _table(cells, task, players)]
    head = [
        "model", "optimizer", "integrated by", f"R before step {FROM} (lowest)", "R as attached",
        "lowest", "R straight", "lowest", "sums", "residual",
    ]  # fmt: skip
    return long_table("optimizers", "Every optimizer on both models", head, rows)


def _table(cells: Cells, task: str, players: int) -> list[list[str]]:
    rows = []
    for name, maker in MAKERS.items():
        records = cells.get(Setting(task, name, players))
        if not records:
            continue
        attached = _of(records, "attached", "pearson")
        straight = _of(records, "straight", "pearson")
        rows.append(
            [
                maker.shown,
                maker.support,
                f"{_of(records, 'attached', 'pearson', late=False).min():.4f}",
                f"**{np.median(attached):.4f}**",
                f"{attached.min():.4f}",
                f"{np.median(straight):.4f}",
                f"{straight.min():.4f}",
                f"{np.median(_of(records, 'attached', 'sum_ratio')):.3f}",
                f"{np.median(_of(records, 'attached', 'residual')):.2%}",
            ]
        )
    return rows


def _short(cells: Cells) -> str:
    """Checked steps from 8 on whose R as attached is below the target, each with its facts."""
    low, other = [], []
    for setting, records in cells.items():
        target = TARGET.get(MAKERS[setting.optimizer].support, USUAL)
        for record in records:
            if record["step"] >= FROM and setting.players == 6:
                found = record["estimates"]["attached"]
                (low if found["pearson"] < target else other).append((setting, record, found))
    said = (
        f"Targets: R of {USUAL} for smooth rules, {TARGET[SIGN]} for signs and Muon. Of "
        f"{len(low) + len(other)} checked steps from {FROM} on, {len(low)} are below theirs."
    )
    if not low:
        return said
    rows = [
        [
            setting.task,
            MAKERS[setting.optimizer].shown,
            str(record["step"]),
            f"{found['pearson']:.4f}",
            f"{found['relative_error']:.3f}",
            f"{found['sum_ratio']:.3f}",
            f"{found['residual']:.1%}",
        ]
        for setting, record, found in low
    ]
    head = ["model", "optimizer", "step", "R", "relative error", "sums", "residual"]
    residuals = [np.median([found["residual"] for *_, found in part]) for part in (low, other)]
    return (
        f"{said} The validation loss bends across them: `path` takes its gradient at both ends and "
        f"their mean for all between. The ledger shows it: the median residual is "
        f"{residuals[0]:.1%} in these steps and {residuals[1]:.1%} in the others.\n\n"
        + long_table("optimizers_short", "Steps below their targets", head, rows)
    )


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    medians = [
        np.nanmedian([
            record["estimates"]["attached"]["pearson"]
            for record in cell["result"]
            if record["step"] >= MOVING
        ])
        for cell in cells.values()
    ]  # fmt: skip
    names = len({key.split("optimizer=")[1].split(" ")[0] for key in cells})
    what = f"{names} optimizers on two models: median R with exact values, the lowest of them"
    return [(what, f"{min(medians):.4f}", "")]
