"""The charts, as data for the page's renderer: one function per chart, tables in, chart out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from inrun.ledger import residual_shares
from inrun.uses import half_interval as _half

_ELSEWHERE = {
    "weight decay": "#8d99ae", "unattributed": "#7b6d8d", "other": "#5f6f52", "residual": "#d1495b",
}  # fmt: skip
ENTRY_COLORS = {"samples": "#2a9d8f", "momentum": "#e9a23b", **_ELSEWHERE}
PAID_COLORS = {
    "samples, in their own step": "#2a9d8f", "samples, through momentum": "#8cc7a1",
    "momentum from before the window": "#e9a23b", **_ELSEWHERE,
}  # fmt: skip
RARE = ("unattributed", "other")  # shown where there is anything of them
GOOD, BAD, NEUTRAL = "#2a9d8f", "#d1495b", "#7f8c99"
HEIGHT = 280
MOST_STEPS = 1500


def _data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    return alt.Data(values=list(rows))


def wide(chart: Any, height: int = HEIGHT) -> alt.TopLevelMixin:
    """As wide as the page."""
    sized: alt.TopLevelMixin = chart.properties(width="container", height=height)
    return sized


def tip(field: str, form: str, **more: Any) -> alt.Tooltip:
    """A number in what the pointer shows."""
    return alt.Tooltip(field, format=form, **more)


def steps(**scale: Any) -> alt.X:
    """The axis of optimizer steps."""
    axis = alt.Axis(tickCount=8, labelOverlap=True)
    return alt.X("step:Q", title="optimizer step", scale=alt.Scale(nice=False, **scale), axis=axis)


def _names(rows: Sequence[tuple[str, Any]]) -> alt.Y:
    order = [name for name, _ in rows]
    return alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))


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
    at = ledger["step"].to_numpy()[some]
    fall = (ledger["opening_loss"].to_numpy()[:1] - ledger["closing_loss"].to_numpy())[some]
    stacked = [
        {"step": int(step), "entry": name, "sum": float(total)}
        for name in colors
        for step, total in zip(at, np.cumsum(np.nan_to_num(entries[name]))[some], strict=True)
    ]
    line = [
        {"step": int(s), "fall": float(f)}
        for s, f in zip(at, fall, strict=True)
        if np.isfinite(f)  # losses need not be known: see the note
    ]
    areas = (
        alt.Chart(_data(stacked))
        .mark_area(opacity=0.75)
        .encode(
            x=steps(),
            y=alt.Y("sum:Q", stack=True, title="validation loss taken off so far"),
            color=alt.Color(
                "entry:N", title=None, scale=alt.Scale(domain=[*colors], range=[*colors.values()])
            ),
            tooltip=["step:Q", "entry:N", tip("sum:Q", ".4f")],
        )
    )
    fell = (
        alt.Chart(_data(line))
        .mark_line(strokeDash=[5, 3], color=NEUTRAL)
        .encode(x=steps(), y="fall:Q", tooltip=["step:Q", tip("fall:Q", ".4f")])
    )
    return wide(alt.layer(areas, fell))


def residuals(ledger: pa.Table) -> alt.TopLevelMixin:
    """The residual of each step as a share of its entries."""
    some = _thinned(ledger.num_rows)
    columns = (
        ledger["step"].take(some),
        residual_shares(ledger)[some],
        ledger["estimator"].take(some),
    )
    rows = [
        {"step": step, "share": float(share), "estimator": estimator}
        for step, share, estimator in zip(
            columns[0].to_pylist(), columns[1], columns[2].to_pylist(), strict=True
        )
        if np.isfinite(share)  # of some steps it is not known
    ]
    share = alt.Y(
        "share:Q", title="|residual| / size of the entries (log above 0.2 %)",
        axis=alt.Axis(format="%"), scale=alt.Scale(type="symlog", constant=0.002),
    )  # fmt: skip
    drawn = alt.Chart(_data(rows)).mark_circle(size=28, opacity=0.7)
    told: list[Any] = ["step:Q", tip("share:Q", ".3%"), "estimator:N"]
    color = alt.Color("estimator:N", title=None)
    return wide(drawn.encode(x=steps(), y=share, color=color, tooltip=told))


def bars(
    rows: Sequence[tuple[str, float]], title: str, domain: tuple[float, float]
) -> alt.TopLevelMixin:
    """One bar per name, in the given order, with its number."""
    scale = alt.Scale(domain=list(domain), clamp=True)
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
    data = _data([{"name": name, "value": value} for name, value in rows])
    base = alt.Chart(data).encode(y=_names(rows), x=x)
    numbers = base.mark_text(align="left", dx=4).encode(text=alt.Text("value:Q", format=".3f"))
    return wide(alt.layer(base.mark_bar(color=GOOD, opacity=0.8), numbers), 36 * len(rows))


def scatter(
    rows: Sequence[tuple[float, float, str]], x_title: str, y_title: str
) -> alt.TopLevelMixin:
    """Values against the truth, one panel per group, with the line on which they are equal."""
    panels = []
    for group in dict.fromkeys(group for _, _, group in rows):
        points = [{"x": x, "y": y} for x, y, g in rows if g == group]
        ends = [min(p["x"] for p in points), max(p["x"] for p in points)]
        where: dict[str, Any] = {
            "x": alt.X("x:Q", title=x_title, axis=alt.Axis(format="~g", tickCount=3)),
            "y": alt.Y("y:Q", title=y_title, axis=alt.Axis(format="~g", tickCount=4)),
        }
        line = alt.Chart(_data([{"x": e, "y": e} for e in ends])).encode(**where)
        dots = alt.Chart(_data(points)).encode(**where)
        both = alt.layer(
            line.mark_line(color=NEUTRAL, strokeDash=[4, 3]),
            dots.mark_circle(size=70, color=GOOD, opacity=0.85),
        )
        panels.append(both.properties(width=205, height=205, title=group))
    beside: alt.TopLevelMixin = alt.hconcat(*panels)
    return beside


def with_error_bars(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> alt.TopLevelMixin:
    """The mean of each name's numbers, with a 95 % interval of the mean and every single one."""
    points = [{"name": name, "value": float(v)} for name, numbers in rows for v in numbers]
    means = []
    for name, numbers in rows:
        mean, half = float(np.mean(numbers)), half_interval(np.asarray(numbers))
        means.append({"name": name, "value": mean, "low": mean - half, "high": mean + half})
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=".1%"))
    singles, base = (alt.Chart(_data(data)).encode(y=_names(rows), x=x) for data in (points, means))
    rules = base.mark_rule(color=GOOD, strokeWidth=3)
    dots = base.mark_circle(color=GOOD, size=110, opacity=1)
    drawn = alt.layer(
        singles.mark_tick(color=NEUTRAL, opacity=0.6),
        rules.encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        dots.encode(tooltip=["name:N", tip("value:Q", ".2%")]),
    )
    return wide(drawn, 36 * len(rows))


def half_interval(array: np.ndarray) -> float:
    """Half of Student's 95 % interval of the mean; 0 for one number."""
    return float(np.nan_to_num(_half(np.asarray(array, dtype=np.float64))))
