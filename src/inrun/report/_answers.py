"""Pages of one answer: a roll-up, two runs beside each other, or the sources of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from inrun.errors import MisuseError
from inrun.report._charts import GOOD, NEUTRAL, wide
from inrun.report._page import Figure, Page, Passage, Section, Table
from inrun.uses import Difference, Rollup, Trace

OTHERS = "all others"
MOST_BARS, MOST_DOTS = 40, 4000
LONGEST = 4000  # characters of a source


def write_rollup(rollup: Rollup, path: Path, *, only: str | None = None) -> None:
    """Writes the page; `only` shows one group by name, and the others as one, without names.

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
        footer=(
            "95 % intervals, of all groups together. Values are Shapley values of each optimizer "
            "step, summed."
        ),
    ).write(path)


def _sums(rollup: Rollup, rows: list[dict[str, float]], only: str | None) -> Section:
    head = [rollup.by, "samples", "value", "95 % interval", "share", "harmful", "also elsewhere"]
    cells = [
        [
            str(row["group"]),
            f"{row['samples']:,}",
            f"{row['value']:+.4g}",
            f"{row['low']:+.4g} to {row['high']:+.4g}" if row["low"] == row["low"] else "one row",
            f"{row['share']:.1%} ({row['share_low']:.1%} to {row['share_high']:.1%})",
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


def _bars(rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    data = [row | {"low": row["value"], "high": row["value"]} if np.isnan(row["low"]) else row
            for row in rows]  # fmt: skip
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=240)),
        x=alt.X("value:Q", title="validation loss taken off", axis=alt.Axis(tickCount=6)),
    )
    ends = base.mark_rule(color=NEUTRAL, strokeWidth=2).encode(x="low:Q", x2="high:Q")
    both = alt.layer(base.mark_bar(color=GOOD, opacity=0.85), ends)
    return wide(both, max(60, 28 * len(rows)))


def _books(rollup: Rollup) -> Section:
    entries = [[name.replace("_", " "), rollup.booked(name)] for name in rollup.books]
    words = "The fall of the validation loss = samples + momentum + weight decay + residual."
    return Section("The books", [words], tables=[Table(["entry", "loss taken off"], entries)])


def write_diff(found: Difference, path: Path) -> None:
    """Writes the page of what `inrun.diff` found; StoreError where it cannot be written."""
    a, b = found.names
    books = [
        [row["entry"], f"{row['a']:+.4g}", f"{row['b']:+.4g}", f"{row['b'] - row['a']:+.4g}"]
        for row in found.books.to_pylist()
    ]
    groups = [
        [f"{row['column']} {row['level']}", f"{row['samples_a']:,}", f"{row['samples_b']:,}",
         f"{row['value_a']:+.4g}", f"{row['value_b']:+.4g}"]
        for row in found.groups.slice(0, MOST_BARS).to_pylist()
    ]  # fmt: skip
    settings = [[row["name"], row["a"], row["b"]] for row in found.settings.to_pylist()]
    Page(
        title=f"What changed from {a} to {b}",
        lead=" ".join(found.sentences()),
        figures=[],
        sections=[
            Section("The books", ["In the units of the validation loss."],
                    tables=[Table(["entry", a, b, "change"], books)]),
            Section("Labels and sources", ["Sums of values; what changed most comes first."],
                    tables=[Table(["", f"samples in {a}", f"in {b}", f"value in {a}", f"in {b}"],
                                  groups)]),
            _moved(found),
            Section("Settings", [] if settings else ["None differs."],
                    tables=[Table(["setting", a, b], settings)] if settings else []),
        ],
        footer="Positive values lowered the validation loss. Samples are common by their id.",
    ).write(path)  # fmt: skip


def _moved(found: Difference) -> Section:
    """Ranks against each other, and the samples that moved furthest."""
    a, b = found.names
    table = found.table
    some = np.unique(np.linspace(0, max(0, table.num_rows - 1), MOST_DOTS).astype(int))
    points = table.select(["rank_a", "rank_b"]).take(some[: table.num_rows]).to_pylist()
    axis = alt.Axis(format="%", tickCount=5)
    dots = alt.Chart(alt.Data(values=points)).mark_circle(color=GOOD, size=22, opacity=0.5)
    chart = dots.encode(
        x=alt.X("rank_a:Q", title=f"rank in {a}, most harmful first", axis=axis),
        y=alt.Y("rank_b:Q", title=f"rank in {b}", axis=axis),
    )
    rows = [
        [str(row["sample_id"]), f"{row['rank_a']:.0%}", f"{row['rank_b']:.0%}",
         f"{row['value_a']:+.3g}", f"{row['value_b']:+.3g}", row["changed"],
         str(row.get("label", "")), str(row.get("text") or "")[:200]]
        for row in table.slice(0, MOST_BARS).to_pylist()
    ]  # fmt: skip
    head = ["sample", f"rank in {a}", f"in {b}", f"value in {a}", f"in {b}", "changed", "label", ""]
    return Section(
        "Common samples",
        [
            "Ranks by normalised value, from 0 % (the most harmful) to 100 %. Below, the samples "
            "whose rank changed most: look for changed labels and for neighbours that came or went."
        ],
        charts=[wide(chart, 320)] if points else [],
        tables=[Table(head, rows)],
    )


def write_trace(
    trace: Trace,
    queries: Mapping[str, str],
    sources: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """Writes the page; StoreError where it cannot be written.

    `queries` are texts by name; `sources` by query its first sources: the ranking's columns, those
    of the sample, and `tokens` with `token_values` where there are any.
    """
    Page(
        title="Where it came from",
        lead=(
            f"Training samples by what they took off each query's loss, by {trace.method}. Green "
            "tokens moved the model towards the query, red ones away from it."
        ),
        figures=[],
        sections=[
            Section(query, [queries.get(query, "")], passages=[_passage(row) for row in rows])
            for query, rows in sources.items()
        ],
        footer="Positive values: leaving the sample out would have left the query's loss higher.",
    ).write(path)


def _passage(row: Mapping[str, Any]) -> Passage:
    facts = [f"{row['value']:+.3g}", f"{row['share']:.1%} of all that lowered it"]
    facts += [f"{k}: {row[k]}" for k in ("label", "source") if row.get(k) is not None]
    head = f"{row['rank']}. {row['sample_id']}"
    if "tokens" in row:
        return Passage(head, facts, list(row["tokens"]), list(row["token_values"]))
    return Passage(head, facts, [str(row.get("text") or "")[:LONGEST]], [0.0])
