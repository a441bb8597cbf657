"""The charts, as data for the page's renderer: one function a chart, tables in, chart out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa
from scipy.stats import t as student

from inrun.ledger import residual_shares

ENTRY_COLORS = {
    "samples": "#2a9d8f",
    "momentum": "#e9a23b",
    "weight decay": "#8d99ae",
    "unattributed": "#7b6d8d",
    "other": "#5f6f52",
    "residual": "#d1495b",
}
PAID_COLORS = {
    "samples, in their own step": "#2a9d8f",
    "samples, through momentum": "#8cc7a1",
    "momentum from before the window": "#e9a23b",
    "weight decay": "#8d99ae",
    "unattributed": "#7b6d8d",
    "other": "#5f6f52",
    "residual": "#d1495b",
}
RARE = ("unattributed", "other")  # shown where there is anything of them
GOOD, BAD, NEUTRAL = "#2a9d8f", "#d1495b", "#7f8c99"
HEIGHT = 280
MOST_STEPS = 1500


def _data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def _colors(colors: Mapping[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colors), range=list(colors.values()))


def _wide(chart: Any, height: int = HEIGHT) -> alt.TopLevelMixin:
    """As wide as the page."""
    sized: alt.TopLevelMixin = chart.properties(width="container", height=height)
    return sized


def _steps() -> alt.X:
    return alt.X(
        "step:Q",
        title="optimizer step",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(tickCount=8, labelOverlap=True),
    )


def _thinned(rows: int) -> np.ndarray:
    """Which of many steps to draw: evenly spread, the last among them."""
    return np.unique(np.linspace(0, max(0, rows - 1), min(rows, MOST_STEPS)).round().astype(int))


def books(ledger: pa.Table) -> alt.TopLevelMixin:
    """Running totals of the entries, stacked, with the loss's fall as a line over them."""
    some = _thinned(ledger.num_rows)
    found = [ledger[name.replace(" ", "_")].to_numpy() for name in ENTRY_COLORS]
    colors, paid = ENTRY_COLORS, ledger["paid_out"].to_numpy()
    if paid.any():
        colors = PAID_COLORS
        found = [found[0], paid, found[1] - paid, *found[2:]]
    entries = dict(zip(colors, found, strict=True))
    colors = {n: c for n, c in colors.items() if n not in RARE or np.nan_to_num(entries[n]).any()}
    entries = {name: entries[name] for name in colors}
    columns = {name: np.cumsum(np.nan_to_num(entry))[some] for name, entry in entries.items()}
    steps = ledger["step"].to_numpy()[some]
    opening = ledger["opening_loss"].to_numpy()
    fall = (opening[:1] - ledger["closing_loss"].to_numpy())[some]
    stacked = [
        {"step": int(step), "entry": name, "sum": float(total)}
        for name, sums in columns.items()
        for step, total in zip(steps, sums, strict=True)
    ]
    line = [
        {"step": int(s), "fall": float(f)}
        for s, f in zip(steps, fall, strict=True)
        if np.isfinite(f)  # losses need not be known: see the note
    ]
    x = _steps()
    areas = (
        alt.Chart(_data(stacked))
        .mark_area(opacity=0.75)
        .encode(
            x=x,
            y=alt.Y("sum:Q", stack=True, title="validation loss taken off so far"),
            color=alt.Color("entry:N", scale=_colors(colors), title=None),
            tooltip=["step:Q", "entry:N", alt.Tooltip("sum:Q", format=".4f")],
        )
    )
    fell = (
        alt.Chart(_data(line))
        .mark_line(strokeDash=[5, 3], color=NEUTRAL)
        .encode(x=x, y="fall:Q", tooltip=["step:Q", alt.Tooltip("fall:Q", format=".4f")])
    )
    return _wide(alt.layer(areas, fell))


def residuals(ledger: pa.Table) -> alt.TopLevelMixin:
    """The residual of each step as a share of its entries."""
    some = _thinned(ledger.num_rows)
    rows = [
        {"step": int(step), "share": float(share), "estimator": estimator}
        for step, share, estimator in zip(
            ledger["step"].to_numpy()[some],
            residual_shares(ledger)[some],
            ledger["estimator"].take(some).to_pylist(),
            strict=True,
        )
        if np.isfinite(share)  # of some steps it is not known
    ]
    return _wide(
        alt.Chart(_data(rows))
        .mark_circle(size=28, opacity=0.7)
        .encode(
            x=_steps(),
            y=alt.Y(
                "share:Q",
                title="|residual| / size of the entries (log above 0.2 %)",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(type="symlog", constant=0.002),
            ),
            color=alt.Color("estimator:N", title=None),
            tooltip=["step:Q", alt.Tooltip("share:Q", format=".3%"), "estimator:N"],
        )
    )


def bars(
    rows: Sequence[tuple[str, float]], title: str, domain: tuple[float, float]
) -> alt.TopLevelMixin:
    """One bar a name, in the given order, with its number."""
    data = _data([{"name": name, "value": value} for name, value in rows])
    y = alt.Y("name:N", sort=[name for name, _ in rows], title=None, axis=alt.Axis(labelLimit=260))
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=list(domain), clamp=True),
        axis=alt.Axis(tickCount=6),
    )
    base = alt.Chart(data).encode(y=y, x=x)
    drawn = base.mark_bar(color=GOOD, opacity=0.8)
    numbers = base.mark_text(align="left", dx=4).encode(text=alt.Text("value:Q", format=".3f"))
    return _wide(alt.layer(drawn, numbers), 36 * len(rows))


def scatter(
    rows: Sequence[tuple[float, float, str]], x_title: str, y_title: str
) -> alt.TopLevelMixin:
    """Values against the truth, a panel a group, with the line on which they are equal."""
    groups = list(dict.fromkeys(group for _, _, group in rows))
    panels = []
    for group in groups:
        points = [{"x": x, "y": y} for x, y, g in rows if g == group]
        ends = [min(p["x"] for p in points), max(p["x"] for p in points)]
        diagonal = alt.Chart(_data([{"x": e, "y": e} for e in ends])).mark_line(
            color=NEUTRAL, strokeDash=[4, 3]
        )
        dots = alt.Chart(_data(points)).mark_circle(size=70, color=GOOD, opacity=0.85)
        x = alt.X("x:Q", title=x_title, axis=alt.Axis(format=".1e", tickCount=3))
        y = alt.Y("y:Q", title=y_title, axis=alt.Axis(format=".1e", tickCount=4))
        panels.append(
            alt.layer(diagonal.encode(x=x, y=y), dots.encode(x=x, y=y)).properties(
                width=205, height=205, title=group
            )
        )
    beside: alt.TopLevelMixin = alt.hconcat(*panels)
    return beside


def with_error_bars(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> alt.TopLevelMixin:
    """The mean of each name's numbers, with a 95 % interval of the mean and every single one."""
    points, means = [], []
    for name, numbers in rows:
        array = np.asarray(numbers, dtype=np.float64)
        half = half_interval(array)
        points += [{"name": name, "value": float(v)} for v in array]
        mean = float(array.mean())
        means.append({"name": name, "value": mean, "low": mean - half, "high": mean + half})
    y = alt.Y("name:N", sort=[name for name, _ in rows], title=None, axis=alt.Axis(labelLimit=260))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=".1%"))
    singles = alt.Chart(_data(points)).mark_tick(color=NEUTRAL, opacity=0.6).encode(y=y, x=x)
    rules = (
        alt.Chart(_data(means))
        .mark_rule(color=GOOD, strokeWidth=3)
        .encode(y=y, x=alt.X("low:Q", title=title), x2="high:Q")
    )
    dots = (
        alt.Chart(_data(means))
        .mark_circle(color=GOOD, size=110, opacity=1)
        .encode(y=y, x=x, tooltip=["name:N", alt.Tooltip("value:Q", format=".2%")])
    )
    return _wide(alt.layer(singles, rules, dots), 36 * len(rows))


def half_interval(array: np.ndarray) -> float:
    """Half of Student's 95 % interval of the mean."""
    if len(array) < 2:
        return 0.0
    return float(student.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
