"""How the pictures are drawn: small, on white, from numbers in the results' file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks.data import UnavailableError

IMAGES = Path(__file__).parents[2] / "docs" / "img"
GOOD, BAD, SOFT, INK = "#2a9d8f", "#d1495b", "#8d99ae", "#1d2329"


def draw(found: dict[str, Any]) -> None:
    """Writes the four pictures of docs/value.md."""
    _save(_sign(found["sign"]), "value-sign")
    _save(_books(found["books"]), "value-books")
    _save(_coalitions(found["coalitions"]), "value-coalitions")
    _save(_later(found["later"]), "value-later")


def _save(chart: alt.TopLevelMixin, name: str) -> None:
    chart = chart.configure(background="white").configure_view(stroke=None)
    (IMAGES / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(chart.to_json()) + "\n")


def _data(rows: list[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=rows)


def _sign(rows: list[dict[str, Any]]) -> alt.Chart:
    """A bar a sample of one step, and which labels are wrong."""
    rows = [row | {"label": "wrong" if row["wrong"] else "right"} for row in rows]
    x = alt.X("sample:N", title="sample of the step", sort=None, axis=alt.Axis(labelAngle=0))
    bars = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=x,
            y=alt.Y("value:Q", title="value: validation loss taken off"),
            color=alt.Color(
                "label:N",
                title="its label",
                scale=alt.Scale(domain=["right", "wrong"], range=[GOOD, BAD]),
            ),
        )
    )
    return bars.properties(width=520, height=200)


def _books(row: dict[str, float]) -> alt.LayerChart:
    """From the opening loss down to the closing loss, an entry a bar."""
    at, rows = row["opening_loss"], []
    for name in ("samples", "momentum", "weight_decay", "residual"):
        after = at - row[name]
        rows.append({
            "entry": name.replace("_", " "), "from": at, "to": after,
            "kind": "took off" if row[name] > 0 else "put on", "said": f"{row[name]:+.2g}",
        })  # fmt: skip
        at = after
    order = ["opening loss", *(r["entry"] for r in rows), "closing loss"]
    ends = [
        {"entry": "opening loss", "at": row["opening_loss"]},
        {"entry": "closing loss", "at": row["closing_loss"]},
    ]
    x = alt.X("entry:N", title=None, sort=order, axis=alt.Axis(labelAngle=0))
    scale = alt.Scale(zero=False)
    bars = (
        alt.Chart(_data(rows))
        .mark_bar(size=40)
        .encode(
            x=x,
            y=alt.Y("from:Q", scale=scale, title="validation loss"),
            y2="to:Q",
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=["took off", "put on"], range=[GOOD, BAD]),
            ),
        )
    )
    said = alt.Chart(_data(rows)).mark_text(dy=-8, fontSize=10).encode(
        x=x, y=alt.Y("from:Q", scale=scale), text="said:N"
    )  # fmt: skip
    ticks = alt.Chart(_data(ends)).mark_tick(thickness=3, size=46, color=INK).encode(
        x=x, y=alt.Y("at:Q", scale=scale)
    )  # fmt: skip
    numbers = [end | {"said": f"{end['at']:.4f}"} for end in ends]
    labels = alt.Chart(_data(numbers)).mark_text(dy=-9, fontSize=10).encode(
        x=x, y=alt.Y("at:Q", scale=scale), text="said:N"
    )  # fmt: skip
    return alt.layer(bars, said, ticks, labels).properties(width=520, height=210)


def _coalitions(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """What each sample takes off in every coalition, its Shapley value, and inrun's value."""
    kinds = ["in one coalition", "exact Shapley value", "value by inrun"]
    scale = alt.Scale(domain=kinds, range=[SOFT, INK, GOOD])
    color = alt.Color("kind:N", title=None, scale=scale)
    x = alt.X("sample:N", title="sample", sort=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("takes off:Q", title="validation loss taken off")
    marks = [
        {"type": "circle", "size": 36, "opacity": 0.55},
        {"type": "tick", "size": 46, "thickness": 3},
        {"type": "point", "size": 130, "filled": False, "strokeWidth": 2.5},
    ]
    layers = []
    for kind, mark in zip(kinds, marks, strict=True):
        chart = alt.Chart(_data([row for row in rows if row["kind"] == kind]), mark=mark)
        layers.append(chart.encode(x=x, y=y, color=color))
    return alt.layer(*layers).properties(width=420, height=230)


def _later(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """What rows of one step did to the loss so many steps later."""
    x = alt.X("steps later:Q", title="optimizer steps after the sample was trained on")
    y = alt.Y("value:Q", title="validation loss taken off by then")
    color = alt.Color(
        "label:N",
        title="its label",
        scale=alt.Scale(domain=["right", "wrong"], range=[GOOD, BAD]),
    )
    lines = (
        alt.Chart(_data(rows))
        .mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.4)
        .encode(x=x, y=y, color=color, detail="sample:N")
    )
    zero = alt.Chart(_data([{"y": 0}])).mark_rule(color=SOFT, strokeDash=[3, 3]).encode(y="y:Q")
    return alt.layer(zero, lines).properties(width=520, height=230)


def photographed(page: Path, picture: Path, size: tuple[int, int]) -> None:
    """A screenshot of the top of a page, by chromium.

    Raises:
        UnavailableError: there is no playwright or no chromium.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UnavailableError("the report's picture needs playwright") from error
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("INRUN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": size[0], "height": size[1]})
        opened.goto(page.resolve().as_uri())
        opened.wait_for_selector('#samples[data-ready="yes"]', timeout=60_000)
        opened.wait_for_timeout(1500)
        opened.screenshot(path=str(picture))
        browser.close()
