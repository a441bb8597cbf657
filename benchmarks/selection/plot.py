"""Draws test accuracy against the horizon, beside the controls."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.selection.cell import HORIZONS, Setting, told

Arms = dict[str, dict[str, Any]]
Cells = dict[Setting, Arms]
COLORS = {"online": "#0b6e8a", "offline": "#e9a23b"}
RULES = {"full": "#222222", "random": "#8d99ae", "loss": "#b23a48"}


def of_setting(cells: Cells, noise: float, rate: float) -> list[Arms]:
    """Arms of each seed."""
    return [found for s, found in cells.items() if (s.noise, s.rate) == (noise, rate)]


def titled(noise: float) -> str:
    """A share of wrong labels in words."""
    return f"{100 * noise:g} % wrong labels" if noise else "no wrong labels"


def _points(cells: Cells, noise: float, rate: float) -> Iterable[dict[str, Any]]:
    for found in of_setting(cells, noise, rate):
        for kind in COLORS:
            for horizon in HORIZONS:
                accuracy = found[f"{kind} {told(horizon)}"]["accuracy"]
                yield {"arm": kind, "horizon": told(horizon), "accuracy": accuracy}


def plot(cells: Cells, path: Path) -> None:
    """Accuracy against the horizon, by labels and learning rate."""
    names, colors = [*COLORS, *RULES], [*COLORS.values(), *RULES.values()]
    color = alt.Color("arm:N", title=None, sort=names, scale=alt.Scale(domain=names, range=colors))
    percent = alt.Axis(format="%")
    rows = []
    for noise in sorted({s.noise for s in cells}, reverse=True):
        charts = []
        for rate in sorted({s.rate for s in cells}):
            base = alt.Chart(alt.Data(values=list(_points(cells, noise, rate)))).encode(
                x=alt.X("horizon:N", sort=[told(h) for h in HORIZONS], axis=alt.Axis(labelAngle=0)),
                color=color,
            )
            y = alt.Y(
                "mean(accuracy):Q", title="test accuracy", axis=percent,
                scale=alt.Scale(zero=False, domain=[0.6, 0.97], clamp=True),
            )  # fmt: skip
            bars = base.mark_errorbar(extent="stderr", clip=True).encode(
                y=alt.Y("accuracy:Q", title="")
            )
            known = [
                {"arm": name, "accuracy": float(np.mean([a[name]["accuracy"] for a in found]))}
                for found in [of_setting(cells, noise, rate)]
                for name in RULES
            ]
            rules = (
                alt.Chart(alt.Data(values=known))
                .mark_rule(strokeDash=[4, 3], clip=True)
                .encode(y=alt.Y("accuracy:Q"), color=color)
            )
            lines = base.mark_line(point=True, clip=True).encode(y=y)
            charts.append(
                (lines + bars + rules).properties(
                    width=190, height=170, title=f"{titled(noise)}, rate {rate:g}"
                )
            )
        rows.append(alt.hconcat(*charts))
    chart = alt.vconcat(*rows).configure_view(stroke=None).configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))
