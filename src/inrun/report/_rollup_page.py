"""A roll-up as a page that can be shown to those whose data it was about."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from inrun.errors import MisuseError
from inrun.report._charts import GOOD, NEUTRAL
from inrun.report._page import Figure, Page, Section, Table
from inrun.uses import Rollup

OTHERS = "all others"
MOST_BARS = 40


def write_rollup(rollup: Rollup, path: Path, *, only: str | None = None) -> None:
    """Writes the page.

    Args:
        rollup: from `inrun.rollup`.
        path: the file; it is replaced.
        only: one group by name; the others are then shown as one, without names.

    Raises:
        MisuseError: no such group.
        StoreError: the page cannot be written.
    """
    rows = rollup.table.to_pylist()
    if only is not None:
        own = [row for row in rows if row["group"] == only]
        if not own:
            raise MisuseError(
                f"No {rollup.by} is called {only!r}; there are "
                f"{', '.join(row['group'] for row in rows)}."
            )
        rows = own
    Page(
        title=f"What the data was worth, by {rollup.by}" + (f": {only}" if only else ""),
        lead=(
            "Every training sample's contribution to the fall of the validation loss was measured "
            f"while the model was trained, and summed by {rollup.by}."
        ),
        figures=[
            Figure(f"{sum(row['share'] for row in rows):.1%}", "of the samples' entry in the books")
            if only
            else Figure(f"{len(rows)}", f"values of {rollup.by}"),
            Figure(rollup.booked("samples"), "taken off the loss by all samples in their steps"),
            Figure(rollup.booked("fall"), "fall of the validation loss over the scored steps"),
        ],
        sections=[_sums(rollup, rows, only), _books(rollup)],
        footer="95 % intervals. Values are Shapley values of each optimizer step, summed.",
    ).write(path)


def _sums(rollup: Rollup, rows: list[dict[str, float]], only: str | None) -> Section:
    head = [rollup.by, "samples", "value", "95 % interval", "share", "harmful", "also elsewhere"]
    cells = [
        [
            str(row["group"]),
            f"{row['samples']:,}",
            f"{row['value']:+.4g}",
            f"{row['low']:+.4g} to {row['high']:+.4g}" if row["low"] == row["low"] else "one row",
            f"{row['share']:.1%}",
            f"{row['harmful']:.1%}",
            f"{row['duplicated']:,}",
        ]
        for row in rows
    ]
    if only is not None:
        rest = rollup.books["samples"] - sum(row["value"] for row in rows)
        share = 1 - sum(row["share"] for row in rows)
        cells.append([OTHERS, "", f"{rest:+.4g}", "", f"{share:.1%}", "", ""])
    notes = rollup.notes()
    return Section("Sums", notes, charts=[_bars(rows[:MOST_BARS])], tables=[Table(head, cells)])


def _bars(rows: list[dict[str, float]]) -> alt.TopLevelMixin:
    data = alt.Data(values=[{k: row[k] for k in ("group", "value")} | _ends(row) for row in rows])
    y = alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=240))
    x = alt.X("value:Q", title="validation loss taken off", axis=alt.Axis(tickCount=6))
    bars = alt.Chart(data).mark_bar(color=GOOD, opacity=0.85).encode(y=y, x=x)
    rules = alt.Chart(data).mark_rule(color=NEUTRAL, strokeWidth=2)
    drawn: alt.TopLevelMixin = alt.layer(
        bars, rules.encode(y=y, x="low:Q", x2="high:Q")
    ).properties(width="container", height=max(60, 28 * len(rows)))
    return drawn


def _ends(row: dict[str, float]) -> dict[str, float]:
    there = row["low"] == row["low"]
    return {
        "low": row["low"] if there else row["value"],
        "high": row["high"] if there else row["value"],
    }


def _books(rollup: Rollup) -> Section:
    return Section(
        "The books",
        ["The fall of the validation loss = samples + momentum + weight decay + residual."],
        tables=[
            Table(
                ["entry", "validation loss taken off"],
                [[name.replace("_", " "), rollup.booked(name)] for name in rollup.books],
            )
        ],
    )
