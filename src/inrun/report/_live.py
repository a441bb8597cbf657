"""Charts whose rows the page's script computes from the samples that the filters leave.

Each is drawn from data called `rows`, in the columns named here; the script of the same chart is in
`assets/charts.js`.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pyarrow as pa

from inrun.report._charts import BAD, GOOD, HEIGHT, NEUTRAL, books

CHOSEN = "#5b7fd1"
HELPED = {"helped": GOOD, "harmed": BAD}


def _rows() -> alt.NamedData:
    return alt.NamedData(name="rows")


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
    }
    if targets:
        charts["harm"] = _harm()
    return {name: chart.to_dict() for name, chart in charts.items()}


def _books(ledger: pa.Table) -> alt.TopLevelMixin:
    """The books, with a line over them: columns step, fall."""
    line = (
        alt.Chart(_rows())
        .mark_line(color=CHOSEN, strokeWidth=2.5)
        .encode(x="step:Q", y="fall:Q", tooltip=["step:Q", alt.Tooltip("fall:Q", format=".4f")])
    )
    drawn: Any = books(ledger)
    layered: alt.TopLevelMixin = alt.layer(drawn, line).properties(width="container", height=HEIGHT)
    return layered


def _distribution() -> alt.TopLevelMixin:
    """Columns: from, to, samples, every, sign."""
    x = alt.X("from:Q", bin="binned", title="score", axis=alt.Axis(tickCount=6, format="~g"))
    every = (
        alt.Chart(_rows())
        .mark_bar(color=NEUTRAL, opacity=0.3)
        .encode(x=x, x2="to:Q", y=alt.Y("every:Q", title="samples", axis=alt.Axis(tickCount=5)))
    )
    chosen = (
        alt.Chart(_rows())
        .mark_bar(opacity=0.85)
        .encode(
            x=x,
            x2="to:Q",
            y="samples:Q",
            color=_sign(),
            tooltip=[
                alt.Tooltip("from:Q", format=".3g"), alt.Tooltip("to:Q", format=".3g"),
                "samples:Q", alt.Tooltip("every:Q", title="without filters"),
            ],
        )
    )  # fmt: skip
    layered: alt.TopLevelMixin = alt.layer(every, chosen).properties(width="container", height=230)
    return layered


def _steps() -> alt.TopLevelMixin:
    """Columns: step, value, sign, id."""
    chart: alt.TopLevelMixin = (
        alt.Chart(_rows())
        .mark_circle(size=16, opacity=0.5)
        .encode(
            x=alt.X(
                "step:Q", title="optimizer step", scale=alt.Scale(nice=False, zero=False),
                axis=alt.Axis(tickCount=8, labelOverlap=True),
            ),
            y=alt.Y(
                "value:Q", title="value in the step (symmetric log)",
                scale=alt.Scale(type="symlog", constant={"expr": "constant"}),
                axis=alt.Axis(format=".0e", tickCount=7),
            ),
            color=_sign(),
            tooltip=["id:N", "step:Q", alt.Tooltip("value:Q", format=".4g")],
        )
        .add_params(alt.param(name="constant", value=1e-4))
        .properties(width="container", height=260)
    )  # fmt: skip
    return chart


def _groups() -> alt.TopLevelMixin:
    """Columns: group, value, low, high, samples, sign; the order is the rows'."""
    y = alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=140))
    x = alt.X("value:Q", title="sum of the score", axis=alt.Axis(tickCount=5, format="~g"))
    tooltip = [
        "group:N", "samples:Q", alt.Tooltip("value:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g"), alt.Tooltip("high:Q", format=".4g"),
    ]  # fmt: skip
    bars = (
        alt.Chart(_rows()).mark_bar(opacity=0.85).encode(y=y, x=x, color=_sign(), tooltip=tooltip)
    )
    rules = (
        alt.Chart(_rows())
        .mark_rule(color=NEUTRAL, strokeWidth=2)
        .encode(y=y, x="low:Q", x2="high:Q", tooltip=tooltip)
    )
    layered: alt.TopLevelMixin = alt.layer(bars, rules).properties(width="container", height=200)
    return layered


def _harm() -> alt.TopLevelMixin:
    """Columns: group, target, value (mean normalised), samples; both orders are the rows'."""
    chart: alt.TopLevelMixin = (
        alt.Chart(_rows())
        .mark_rect()
        .encode(
            x=alt.X("target:N", sort=None, title=None, axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=140)),
            color=alt.Color(
                "value:Q", title=None,
                scale=alt.Scale(range=[BAD, "#f3f1ea", GOOD], domainMid=0, interpolate="lab"),
                legend=alt.Legend(gradientLength=160, format=".2g"),
            ),
            tooltip=[
                "group:N", "target:N", alt.Tooltip("value:Q", format=".3g", title="mean"),
                "samples:Q",
            ],
        )
        .properties(width="container", height=200)
    )  # fmt: skip
    return chart
