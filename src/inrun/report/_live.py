"""Charts whose rows the page's script computes from the samples that the filters leave.

Each is drawn from data called `rows`, in the columns named here; the script of the same chart is in
`assets/charts.js`. It puts the unit in place of `[unit]`, and in place of `[factor]` what numbers
are multiplied by to be in it.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pyarrow as pa

from inrun.report._charts import BAD, GOOD, NEUTRAL, books, steps, tip, wide

CHOSEN = "#5b7fd1"
SCALED = "format(datum.value * [factor], ',~r')"  # of the unit that the script chooses
HELPED = {"helped": GOOD, "harmed": BAD}


def _rows() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="rows"))


def _sign() -> alt.Color:
    scale = alt.Scale(domain=list(HELPED), range=list(HELPED.values()))
    return alt.Color("sign:N", scale=scale, legend=None)


def live_charts(ledger: pa.Table, targets: int) -> dict[str, dict[str, Any]]:
    """Specifications by the names that the script knows; the harm profile where it exists."""
    charts = {
        "books": _books(ledger),
        "distribution": _distribution(),
        "steps": _steps(),
        "groups": _groups(),
        "map": _placed(),
        "worth": _placed(),
    }
    if targets:
        charts["harm"] = _harm()
    return {name: chart.to_dict() for name, chart in charts.items()}


def _books(ledger: pa.Table) -> alt.TopLevelMixin:
    """The books, with a line over them: columns step, fall."""
    line = _rows().mark_line(color=CHOSEN, strokeWidth=2.5)
    told: list[Any] = ["step:Q", tip("fall:Q", ".4f")]
    drawn: Any = books(ledger)
    return wide(alt.layer(drawn, line.encode(x="step:Q", y="fall:Q", tooltip=told)))


def _distribution() -> alt.TopLevelMixin:
    """Columns: from, to, samples, every, sign."""
    axis = alt.Axis(tickCount=6, labelExpr=SCALED)
    base = _rows().encode(x=alt.X("from:Q", bin="binned", title="[unit]", axis=axis), x2="to:Q")
    every = base.mark_bar(color=NEUTRAL, opacity=0.3).encode(
        y=alt.Y("every:Q", title="samples", axis=alt.Axis(tickCount=5))
    )
    told: list[Any] = [
        tip("from:Q", ".3g"), tip("to:Q", ".3g"), "samples:Q",
        alt.Tooltip("every:Q", title="without filters"),
    ]  # fmt: skip
    chosen = base.mark_bar(opacity=0.85).encode(y="samples:Q", color=_sign(), tooltip=told)
    return wide(alt.layer(every, chosen), 230)


def _steps() -> alt.TopLevelMixin:
    """Columns: step, value, sign, id."""
    value = alt.Y(
        "value:Q", title="value, [unit]",
        scale=alt.Scale(type="symlog", constant={"expr": "constant"}),
        axis=alt.Axis(labelExpr=SCALED, tickCount=5),
    )  # fmt: skip
    told: list[Any] = ["id:N", "step:Q", tip("value:Q", ".4g")]
    dots = _rows().mark_circle(size=16, opacity=0.5)
    dots = dots.encode(x=steps(zero=False), y=value, color=_sign(), tooltip=told)
    return wide(dots.add_params(alt.param(name="constant", value=1e-4)), 260)


def _groups() -> alt.TopLevelMixin:
    """Columns: group, value, low, high, samples, sign; the order is the rows'."""
    told: list[Any] = [
        "group:N", "samples:Q", tip("value:Q", ".4g"), tip("low:Q", ".4g"), tip("high:Q", ".4g"),
    ]  # fmt: skip
    base = _rows().encode(
        y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=140)), tooltip=told
    )
    x = alt.X("value:Q", title="sum, [unit]", axis=alt.Axis(tickCount=5, labelExpr=SCALED))
    bars = base.mark_bar(opacity=0.85).encode(x=x, color=_sign())
    rules = base.mark_rule(color=NEUTRAL, strokeWidth=2).encode(x="low:Q", x2="high:Q")
    return wide(alt.layer(bars, rules), 200)


def _placed() -> alt.TopLevelMixin:
    """Columns: x, y, color, chosen (0 or 1), id, value; dragging over it selects."""
    told: list[Any] = ["id:N", "color:N", tip("value:Q", ",.3~r")]
    axis = alt.Axis(tickCount=5, format=",~r")
    x, y = (
        of(f"{name}:Q", title=f"[{name}]", axis=axis) for of, name in ((alt.X, "x"), (alt.Y, "y"))
    )
    opacity = alt.Opacity(
        "chosen:O", scale=alt.Scale(domain=[0, 1], range=[0.08, 0.75]), legend=None
    )
    color = alt.Color("color:N", title=None, scale=alt.Scale(domain=[], range=[]))
    drawn = _rows().mark_circle(size=26).encode(
        x=x, y=y, color=color, opacity=opacity, tooltip=told
    )  # fmt: skip
    return wide(drawn.add_params(alt.selection_interval(name="brush")), 320)


def _harm() -> alt.TopLevelMixin:
    """Columns: group, target, value (mean normalised), samples; both orders are the rows'."""
    color = alt.Color(
        "value:Q", title=None,
        scale=alt.Scale(range=[BAD, "#f3f1ea", GOOD], domainMid=0, interpolate="lab"),
        legend=alt.Legend(gradientLength=160, format=",.2~r"),
    )  # fmt: skip
    told: list[Any] = ["group:N", "target:N", tip("value:Q", ".3g", title="mean"), "samples:Q"]
    drawn = _rows().mark_rect().encode(
        x=alt.X("target:N", sort=None, title=None, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=140)),
        color=color, tooltip=told,
    )  # fmt: skip
    return wide(drawn, 200)
