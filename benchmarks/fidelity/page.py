"""Writes docs/fidelity.md and its plots from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from benchmarks.fidelity.cell import Setting
from benchmarks.results_file import RESULTS

DOCS = Path(__file__).parents[2] / "docs"
OWN_GAME = {
    "path": "shared",
    "path-smoothed": "shared",
    "path, stream": "shared",
    "path-given": "given",
    "linearized": "given",
    "tangent": "given",
    "sgd": "given",
    "sgd-second": "given",
}
PLOTTED = ("path", "path-given", "path-smoothed", "linearized", "sgd")
COLORS = ("#0b6e8a", "#2a9d8f", "#e9a23b", "#d1495b", "#8d99ae")

Record = dict[str, Any]
Cells = dict[Setting, list[Record]]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "fidelity.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    base = {s: r for s, r in cells.items() if s == Setting(s.task, seed=s.seed)}
    _plot_steps(base, DOCS / "img" / "fidelity-steps.svg")
    _plot_rates(cells, DOCS / "img" / "fidelity-rates.svg")
    template = (Path(__file__).parent / "page.md").read_text()
    parts = {
        "TABLE": _table(base),
        "GAMES": _games(base),
        "OPTIMIZERS": _optimizers(cells),
        "DIPS": _dips(base),
        "RUN": _run(stored),
    }
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text)
    (DOCS / "fidelity.md").write_text(template)


def _values(
    records: Iterable[Record],
    estimator: str,
    measure: str,
    first: int,
    last: int = 10**9,
    game: str | None = None,
) -> np.ndarray:
    game = game or OWN_GAME[estimator]
    found = [
        r["agreement"][estimator][game][measure] for r in records if first <= r["step"] <= last
    ]
    return np.array([np.nan if x is None else x for x in found], dtype=float)


def _pooled(cells: Cells, task: str) -> list[Record]:
    return [
        record for setting, records in cells.items() if setting.task == task for record in records
    ]


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(setting.task for setting in cells))


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _number(values: np.ndarray, how: Any = np.median, digits: int = 4) -> str:
    finite = values[np.isfinite(values)]
    return f"{how(finite):.{digits}f}" if len(finite) else "none"


def _table(cells: Cells) -> str:
    rows = []
    for task in _tasks(cells):
        records = _pooled(cells, task)
        for estimator in OWN_GAME:
            later = _values(records, estimator, "pearson", 5)
            three = _values(records, estimator, "pearson", 3)
            rows.append(
                [
                    task,
                    f"`{estimator}`",
                    _number(_values(records, estimator, "pearson", 1, 2), np.mean),
                    _number(later),
                    f"{np.mean(three >= 0.99):.0%}",
                    _number(three, np.min, 3),
                    _number(_values(records, estimator, "relative_error", 5), digits=3),
                    _number(_values(records, estimator, "sum_ratio", 5), digits=3),
                ]
            )
    head = [
        "model",
        "estimator",
        "R, steps 1 and 2 (mean)",
        "R from step 5 (median)",
        "steps from 3 with R >= 0.99",
        "lowest R from step 3",
        "relative error (median)",
        "ratio of sums (median)",
    ]
    return _markdown(head, rows)


def _games(cells: Cells) -> str:
    rows = []
    for task in _tasks(cells):
        records = _pooled(cells, task)
        row = [task]
        for estimator in ("path", "path-smoothed", "path-given"):
            row += [
                _number(_values(records, estimator, "pearson", 5, game=game))
                for game in ("shared", "given")
            ]
        rows.append(row)
    head = [
        "model",
        *(
            f"`{e}`, {g}"
            for e in ("path", "path-smoothed", "path-given")
            for g in ("shared", "given")
        ),
    ]
    return _markdown(head, rows)


def _optimizers(cells: Cells) -> str:
    rows = []
    for setting, records in cells.items():
        plain = Setting(setting.task, seed=setting.seed)
        if setting.rate != 1.0 or setting.seed or setting.task not in ("mlp-mnist", "gpt2-brown"):
            continue
        what = [setting.optimizer]
        what += [] if setting.clip else ["no clipping"]
        what += [] if setting.schedule == "constant" else ["warm-up and cosine"]
        name = ", ".join(what) + (" (as above)" if setting == plain else "")
        row = [setting.task, name]
        row += [_number(_values(records, e, "pearson", 5)) for e in PLOTTED]
        rows.append([*row, f"{len(records)}"])
    return _markdown(["model", "trained with", *(f"`{e}`" for e in PLOTTED), "checked steps"], rows)


def _dips(cells: Cells) -> str:
    rows = []
    for setting, records in cells.items():
        for record in records:
            a = record["agreement"]["path"]["shared"]
            if record["step"] >= 3 and a["pearson"] < 0.99:
                truth = np.array(record["truth"]["shared"])
                smoothed = record["agreement"]["path-smoothed"]["shared"]["pearson"]
                rows.append(
                    [
                        setting.task,
                        str(setting.seed),
                        str(record["step"]),
                        f"{a['pearson']:.4f}",
                        f"{a['relative_error']:.3f}",
                        f"{truth.std() / np.abs(truth).mean():.2f}",
                        f"{smoothed:.4f}",
                        f"{record['estimates']['path']['residual']:.2%}",
                    ]
                )
    if not rows:
        return "There was none."
    head = [
        "model",
        "seed",
        "step",
        "R of `path`",
        "relative error",
        "spread of the true values (standard deviation over mean size)",
        "R of `path-smoothed`",
        "residual",
    ]
    return _markdown(head, rows)


def _run(stored: dict[str, Any]) -> str:
    with_ = [cell["environment"] for cell in stored.values()]
    commits = ", ".join(dict.fromkeys(e["commit"] for e in with_))
    last = with_[-1]
    return (
        f"{len(stored)} cells, commit {commits}, PyTorch {last['torch']}, Python {last['python']}, "
        f"{last['cores']} cores ({last['threads']} threads), {last['gpu'] or 'no GPU'}"
    )


def _rows_for_plot(settings: Cells, x: str) -> list[Record]:
    return [
        {
            "task": setting.task,
            "estimator": estimator,
            "x": record["step"] if x == "step" else setting.rate,
            # a scale on which 0.9, 0.99 and 0.999 are equally far apart
            "miss": max(1 - record["agreement"][estimator][OWN_GAME[estimator]]["pearson"], 1e-6),
        }
        for setting, records in settings.items()
        for record in records
        for estimator in PLOTTED
        if np.isfinite(record["agreement"][estimator][OWN_GAME[estimator]]["pearson"])
        and (x == "step" or record["step"] >= 5)
    ]


def _panels(rows: list[Record], x_title: str, path: Path) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    charts = []
    for task in tasks:
        data = alt.Data(values=[row for row in rows if row["task"] == task])
        charts.append(
            alt.Chart(data)
            .mark_line(point=True)
            .encode(
                x=alt.X("x:Q", title=x_title, scale=alt.Scale(type="log", nice=False)),
                y=alt.Y(
                    "median(miss):Q",
                    title="1 - R (median), lower is better",
                    scale=alt.Scale(type="log", domain=[1e-6, 2]),
                    axis=alt.Axis(format=".0e", tickCount=6),
                ),
                color=alt.Color(
                    "estimator:N",
                    scale=alt.Scale(domain=list(PLOTTED), range=list(COLORS)),
                    title=None,
                    sort=list(PLOTTED),
                ),
            )
            .properties(width=300, height=210, title=task)
        )
    chart = alt.concat(*charts, columns=2).configure_view(stroke=None)
    chart = chart.configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))


def _plot_steps(base: Cells, path: Path) -> None:
    _panels(_rows_for_plot(base, "step"), "optimizer step", path)


def _plot_rates(cells: Cells, path: Path) -> None:
    swept = {
        s: r
        for s, r in cells.items()
        if s == Setting(s.task, rate=s.rate) and s.task in ("mlp-mnist", "gpt2-brown")
    }
    _panels(_rows_for_plot(swept, "rate"), "learning rate, as a multiple of the usual one", path)
