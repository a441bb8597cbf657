"""The page's plots: one minus R on a scale on which 0.9, 0.99 and 0.999 are equally far apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.fidelity.cell import Setting
from benchmarks.fidelity.reading import OWN_GAME, Cells

LINES = {
    "path": "#0b6e8a",
    "path-given": "#2a9d8f",
    "path-smoothed": "#e9a23b",
    "linearized": "#d1495b",
    "sgd": "#8d99ae",
}
STRETCHED = ("path", "path-given", "linearized", "sgd")

Row = dict[str, Any]


def _miss(pearson: float) -> float:
    return max(1 - pearson, 1e-7)


def _panels(rows: list[Row], x: alt.X, lines: dict[str, str], path: Path) -> None:
    """A panel a model, a line an estimator, medians over seeds and steps."""
    charts = []
    for panel in dict.fromkeys(row["panel"] for row in rows):
        y = alt.Y(
            "median(miss):Q", title="1 - R (median), lower is better",
            scale=alt.Scale(type="log", domain=[1e-7, 2]), axis=alt.Axis(format=".0e", tickCount=7),
        )  # fmt: skip
        color = alt.Color(
            "line:N", title=None, sort=list(lines),
            scale=alt.Scale(domain=list(lines), range=list(lines.values())),
        )  # fmt: skip
        data = alt.Data(values=[row for row in rows if row["panel"] == panel])
        chart = alt.Chart(data).mark_line(point=True).encode(x=x, y=y, color=color)
        charts.append(chart.properties(width=300, height=210, title=panel))
    chart = alt.concat(*charts, columns=2).configure_view(stroke=None)
    svg = vl_convert.vegalite_to_svg(chart.configure(background="white").to_json())
    path.write_text(svg)


def _log(field: str, title: str) -> alt.X:
    return alt.X(f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False))


def steps(cells: Cells, path: Path) -> None:
    """Over the course of training."""
    rows = [
        {"panel": setting.task, "line": name, "x": record["step"], "miss": _miss(r)}
        for setting, records in cells.items()
        for record in records
        for name in LINES
        if name in record["agreement"]
        and np.isfinite(r := record["agreement"][name][OWN_GAME[name]]["pearson"])
    ]
    _panels(rows, _log("x", "optimizer step"), LINES, path)


def rates(cells: Cells, path: Path) -> None:
    """Against the learning rate, from the fifth step on."""
    rows = [
        {"panel": setting.task, "line": name, "x": setting.rate, "miss": _miss(r)}
        for setting, records in cells.items()
        if setting == Setting(setting.task, rate=setting.rate)
        and setting.task in ("mlp-mnist", "gpt2-brown")
        for record in records
        if record["step"] >= 5
        for name in LINES
        if name in record["agreement"]
        and np.isfinite(r := record["agreement"][name][OWN_GAME[name]]["pearson"])
    ]
    _panels(rows, _log("x", "learning rate, as a multiple of the usual one"), LINES, path)


def stretches(cells: Cells, path: Path) -> None:
    """Against the size of the perturbation."""
    rows = [
        {"panel": setting.task, "line": name, "x": stretched["stretch"], "miss": _miss(r)}
        for setting, records in cells.items()
        for record in records
        for stretched in record["stretched"]
        for name in STRETCHED
        if np.isfinite(r := stretched["agreement"][name]["pearson"])
    ]
    lines = {name: LINES[name] for name in STRETCHED}
    _panels(rows, _log("x", "the step's gradient, as a multiple of the real one"), lines, path)


def points(cells: Cells, path: Path) -> None:
    """Against the point that the optimizer is expanded at."""
    lines = {"gradient as it was": "#0b6e8a", "ten times as large": "#d1495b"}
    rows = [
        {"panel": setting.task, "line": line, "x": point, "miss": _miss(r)}
        for setting, records in cells.items()
        for record in records
        for line, stretch in zip(lines, (1.0, 10.0), strict=True)
        for stretched in record["stretched"]
        if stretched["stretch"] == stretch
        for name, found in stretched["agreement"].items()
        if (point := POINTS.get(name)) and np.isfinite(r := found["pearson"])
    ]
    x = alt.X("x:N", title="the optimizer's slope is taken", sort=list(POINTS.values()))
    _panels(rows, x, lines, path)


POINTS = {
    "slope at the step before": "at the step before",
    "derivative at 0 g": "at no gradient",
    "derivative at 0.25 g": "at 1/4 g",
    "derivative at 0.5 g": "at 1/2 g",
    "derivative at 0.75 g": "at 3/4 g",
    "derivative at 1 g": "at g",
    "path-given": "as the mean of the path",
}
