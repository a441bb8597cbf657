"""Writes docs/evidence/pruning.md and its plot from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.claims import CLAIMS
from benchmarks.classification.tasks import CAPPED, RECIPES, TOKENS
from benchmarks.compared import (
    LEVEL,
    Gain,
    above,
    below,
    by_seed,
    compared,
    listed,
    require,
)
from benchmarks.markdown import fill, long_table
from benchmarks.pruning.cell import CLEAN, DROPS, FULL, Setting
from benchmarks.results_file import RESULTS, environments
from benchmarks.statements.sections import gain_of_shares
from inrun.uses import half_interval

DOCS = Path(__file__).parents[2] / "docs"
CONTROL = "random, balanced"
DEFAULT = "path, total, balanced"
SGD = "sgd, total, balanced"
PLOTTED = (DEFAULT, "path, harm, balanced", "mean loss, balanced", "sgd, total", CONTROL)
COLORS = ("#0b6e8a", "#2a9d8f", "#e9a23b", "#6a4c93", "#8d99ae")

Cells = dict[Setting, dict[str, Any]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "pruning.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    here = Path(__file__).parent
    model = RECIPES["digits"].build()
    parts = {
        "PARAMETERS": f"{sum(p.numel() for p in model.parameters()):,}",
        "CAPPED": str(CAPPED),
        "TOKENS": str(TOKENS),
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "SEEDS": str(len({s.seed for s in cells})),
        "RANKINGS": str(len(next(iter(cells.values()))["accuracy"]) - 1),
        **findings(cells),
        "SUMMARY": _summary(cells),
        "GAINS": _gains(cells),
        "PLOT": "![Accuracy against the share that is dropped](../img/pruning.svg)",
        "TABLES": _tables(cells),
        "RUN": environments(stored),
    }
    fill(here / "page.md", parts, DOCS / "evidence" / "pruning.md")
    _plot(cells, DOCS / "img" / "pruning.svg")


def _settings(cells: Cells) -> list[tuple[str, float]]:
    return list(dict.fromkeys((s.task, s.noise) for s in cells))


def _title(task: str, noise: float) -> str:
    return f"{task}, {noise:.0%} wrong" if noise else f"{task}, no wrong labels"


def _of(cells: Cells, task: str, noise: float) -> list[dict[str, Any]]:
    return [r for s, r in cells.items() if (s.task, s.noise) == (task, noise)]


def _mean(result: dict[str, Any], ranking: str) -> float:
    return float(np.mean(list(result["accuracy"][ranking].values())))


def against(cells: Cells, control: str, wrong: bool | None = None) -> dict[str, Gain]:
    """Each ranking's gain over another in points, over seeds; of all settings or some."""
    chosen = [(s, r) for s, r in cells.items() if wrong is None or (s.noise > 0) == wrong]
    names = [name for name in next(iter(cells.values()))["accuracy"] if name != control]

    def gains(name: str) -> list[float]:
        return by_seed(
            chosen, lambda c: c[0].seed, lambda c: 100 * (_mean(c[1], name) - _mean(c[1], control))
        )

    return compared({name: gains(name) for name in names})


def _summary(cells: Cells) -> str:
    every, wrong, right = (against(cells, CONTROL, w) for w in (None, True, False))
    rows = []
    for name in sorted(every, key=lambda n: -every[n].mean):
        shown = f"**{name}**" if name == DEFAULT else name
        told = [f"{part[name].told()} ({part[name].p:.3f})" for part in (wrong, right)]
        rows.append([shown, every[name].told(), *told])
    head = ["ranking", "gain, points", "where labels are wrong", "where they are right"]
    return long_table("pruning_over_random", "Gain over the control", head, rows)


def _gains(cells: Cells) -> str:
    settings = _settings(cells)
    rows = []
    for name in against(cells, CONTROL):
        each = [
            np.mean([_mean(r, name) - _mean(r, CONTROL) for r in _of(cells, *setting)])
            for setting in settings
        ]
        rows.append([name, *(f"{100 * e:+.2f}" for e in each)])
    head = ["ranking", *(_title(*setting) for setting in settings)]
    return long_table("pruning_gains", "Gain over the control by setting, points", head, rows)


def findings(cells: Cells) -> dict[str, str]:
    """What the data say of rankings, in words.

    Raises:
        ValueError: they do not bear the claim in `benchmarks/claims.py`.
    """
    wrong, right = (against(cells, CONTROL, w) for w in (True, False))
    default = against(cells, DEFAULT)
    balanced = {name for name in wrong if name.endswith("balanced")}
    holds = not above(right) and not below(wrong) and balanced <= set(above(wrong))
    require(holds and default[SGD].p < LEVEL, CLAIMS["pruning"].claim)
    equal = [name for name, gain in default.items() if gain.p >= LEVEL]
    return {
        "LOSE": str(len(below(right))),
        "SHARED_R8": gain_of_shares("r8", 0.2, "plain"),
        "EQUAL": listed(sorted(equal, key=lambda name: -default[name].mean)),
        "SGD": f"{default[SGD].told()} points",
    }


def _tables(cells: Cells) -> str:
    rows = []
    for setting in _settings(cells):
        found = _of(cells, *setting)
        known = {key: _number([r[key] for r in found]) for key in (FULL, CLEAN)}
        said = f"{_title(*setting)} ({len(found)} seeds; all: {known[FULL]}"
        said += f", clean: {known[CLEAN]})" if setting[1] else ")"
        names = sorted(found[0]["accuracy"], key=lambda n: -np.mean([_mean(r, n) for r in found]))
        rows += [
            [said, name, *(_number([r["accuracy"][name][str(d)] for r in found]) for d in DROPS)]
            for name in names
        ]
    head = ["setting", "ranking", *(f"dropped {d:.0%}" for d in DROPS)]
    return long_table("pruning", "Accuracy by setting, ranking and share", head, rows)


def _number(numbers: Sequence[float]) -> str:
    return f"{100 * np.mean(numbers):.1f} ± {100 * half_interval(np.array(numbers)):.1f}"


def _plot(cells: Cells, path: Path) -> None:
    charts = []
    for setting in _settings(cells):
        rows = [
            {"ranking": name, "dropped": d, "accuracy": r["accuracy"][name][str(d)]}
            for r in _of(cells, *setting)
            for name in PLOTTED
            for d in DROPS
        ]
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("dropped:Q", title="share dropped", axis=alt.Axis(format="%")),
            color=alt.Color(
                "ranking:N", title=None, sort=list(PLOTTED),
                scale=alt.Scale(domain=list(PLOTTED), range=list(COLORS)),
            ),
        )  # fmt: skip
        y = alt.Y(
            "mean(accuracy):Q", title="test accuracy", scale=alt.Scale(zero=False),
            axis=alt.Axis(format="%"),
        )  # fmt: skip
        line = base.mark_line(point=True).encode(y=y)
        bars = base.mark_errorbar(extent="stderr").encode(y=alt.Y("accuracy:Q", title=""))
        charts.append((line + bars).properties(width=260, height=180, title=_title(*setting)))
    chart = alt.concat(*charts, columns=2).configure_view(stroke=None)
    chart = chart.configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    rows = []
    for ranking in ("path, total, balanced", "mean loss", "sgd, total", "linearized, total"):
        gains = []
        for cell in cells.values():
            accuracy = cell["result"]["accuracy"]
            if ranking in accuracy:
                ours, control = accuracy[ranking], accuracy["random, balanced"]
                gains.append(100 * np.mean([ours[share] - control[share] for share in control]))
        what = f"`{ranking}`: points of accuracy over random pruning, mean of {len(gains)}"
        rows.append((what, f"{np.mean(gains):+.2f}", ""))
    return rows
