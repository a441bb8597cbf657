"""Writes docs/influence.md and its plots from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from scipy.stats import spearmanr

from benchmarks.influence.cell import CARRY, NOISE, Setting
from benchmarks.markdown import markdown
from benchmarks.results_file import RESULTS
from inrun.replay import ErrorProxy

DOCS = Path(__file__).parents[2] / "docs"
TRUTH = f"truth, start moved by {NOISE:g}"
NO_DECAY = "truth, no weight decay"
TRUTHS = {TRUTH: "truth_again", NO_DECAY: "truth_without_decay"}
LINEAR = 0.05
PLOTTED = (
    "look-ahead", "look-ahead, carried push", "look-ahead, carried push, kinks", "SGD dynamics",
    "one step", *TRUTHS,
)  # fmt: skip
COLORS = ("#0b6e8a", "#2a9d8f", "#6a4c93", "#e9a23b", "#8d99ae", "#222222", "#b23a48")
ORDER = (
    "look-ahead", "look-ahead, finite push", "look-ahead, carried push",
    "look-ahead, finite push, kinks", "look-ahead, carried push, kinks",
    "look-ahead, momentum only", "SGD dynamics", "TracIn, 5 states", "one step", *TRUTHS,
)  # fmt: skip

Record = dict[str, Any]
Cells = dict[Setting, Record]


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "influence.json").read_text())["cells"]
    names = ("fidelity", "carried", "queries", "decay", "proxy", "rounding", "cost")
    kinds: dict[str, Cells] = {name: {} for name in names}
    for key, cell in stored.items():
        kind, _, setting = key.partition(": ")
        kinds[kind][Setting.of(setting)] = cell["result"]
    for setting, result in kinds["carried"].items():
        if setting in kinds["fidelity"]:
            kinds["fidelity"][setting]["methods"] |= result["methods"]
    for setting, result in kinds["decay"].items():
        kinds["fidelity"][setting]["truth_without_decay"] = result
    for setting, result in kinds["rounding"].items():
        kinds["proxy"][setting] |= result
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    _plot_rates(kinds["fidelity"], DOCS / "img" / "influence-rates.svg")
    _plot_proxy(kinds["proxy"], DOCS / "img" / "influence-proxy.svg")
    template = (Path(__file__).parent / "page.md").read_text()
    parts = {
        "TABLES": _tables(kinds["fidelity"]),
        "RELIABILITY": _reliability(kinds["fidelity"]),
        "QUERIES": _queries(kinds["queries"]),
        "LINEAR": f"{LINEAR:.0%}",
        "FINDINGS": (Path(__file__).parent / "findings.md").read_text().strip(),
        "KINKS": _kinks(kinds["fidelity"]),
        "PROXY": _proxy(kinds["proxy"]),
        "VERDICTS": _verdicts(kinds["proxy"]),
        "TRUST": f"{ErrorProxy.TRUST:g}",
        "RANKING": f"{ErrorProxy.RANKING:g}",
        "COST": _cost(kinds["cost"]),
        "RUN": _run(stored),
        "NOISE": f"{NOISE:g}",
        "CARRY": f"{CARRY}",
    }
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text)
    (DOCS / "influence.md").write_text(template)


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(setting.task for setting in cells))


def _rates(cells: Cells) -> list[float]:
    return sorted({setting.rate for setting in cells}, reverse=True)


def _of(cells: Cells, task: str, rate: float, method: str) -> list[Record]:
    found = [r for s, r in cells.items() if s.task == task and s.rate == rate]
    if method in TRUTHS:
        return [r[TRUTHS[method]] for r in found if TRUTHS[method] in r]
    return [r["methods"][method] for r in found if method in r["methods"]]


def _tables(cells: Cells) -> str:
    parts = []
    for task in _tasks(cells):
        rows = []
        for method in _shown(task, ORDER):
            row = [method if method in TRUTHS else f"`{method}`"]
            for rate in _rates(cells):
                found = _of(cells, task, rate, method)
                row.append(_agreement(found))
            rows.append(row)
        seeds = len({s.seed for s in cells if s.task == task})
        out = len(next(r["truth"] for s, r in cells.items() if s.task == task))
        head = [
            f"{task}, {seeds} seeds, {out} left out",
            *(f"rate {rate:g}" for rate in _rates(cells)),
        ]
        parts.append(markdown(head, rows))
    return "\n\n".join(parts)


def _shown(task: str, methods: Sequence[str]) -> list[str]:
    """Counting kinks in changes nothing where there are none."""
    return [method for method in methods if "relu" in task or "kinks" not in method]


def _agreement(found: list[Record]) -> str:
    if not found:
        return ""
    text = f"{np.mean([f['spearman'] for f in found]):.3f}"
    if all("spearman_each" in f for f in found):
        text += f" ({np.mean([f['spearman_each'] for f in found]):.2f})"
    return text + f"; {np.median([f['relative_error'] for f in found]):.1%}"


def linear_share(record: Record) -> float:
    """The share of samples whose measured removal is within `LINEAR` of first order's word."""
    truth, first = np.array(record["truth"]), np.array(record["methods"]["look-ahead"]["values"])
    return float((np.abs(first - truth) <= LINEAR * np.abs(truth)).mean())


def _reliability(cells: Cells) -> str:
    """How far the truth agrees with itself, and how much of it is linear."""
    rows = []
    for task in _tasks(cells):
        for rate in _rates(cells):
            found = [r for s, r in cells.items() if s.task == task and s.rate == rate]
            row = [task, f"{rate:g}"]
            for name in TRUTHS:
                ranks = [r["spearman"] for r in _of(cells, task, rate, name)]
                row.append(f"{np.mean(ranks):.3f} ({len(ranks)})" if ranks else "not measured")
            shares = [linear_share(r) for r in found]
            rows.append([*row, f"{np.mean(shares):.0%}"])
    head = ["task", "rate", *TRUTHS, f"within {LINEAR:.0%} of linear"]
    return markdown(head, rows)


def _queries(cells: Cells) -> str:
    if not cells:
        return "Not measured yet."
    methods = list(next(iter(cells.values()))["methods"])
    rows = []
    for task in _tasks(cells):
        for rate in _rates(cells):
            found = [r for s, r in cells.items() if s.task == task and s.rate == rate]
            if found:
                means = [np.mean([r["methods"][m] for r in found]) for m in methods]
                count = f"{found[0]['queries']}"
                rows.append([task, f"{rate:g}", count, *(f"{mean:.3f}" for mean in means)])
    return markdown(["task", "rate", "queries", *(f"`{m}`" for m in methods)], rows)


def _kinks(cells: Cells) -> str:
    rows = []
    for task in [task for task in ("mlp-relu", "mlp-gelu") if task in _tasks(cells)]:
        row = [task]
        for rate in _rates(cells):
            found = _of(cells, task, rate, "look-ahead, carried push")
            row.append(f"{np.median([f['relative_error'] for f in found]):.1%}" if found else "")
        rows.append(row)
    return markdown(["task", *(f"rate {rate:g}" for rate in _rates(cells))], rows)


def _read(record: Record) -> ErrorProxy:
    """The proxy of a cell; cells from before rounding counted hold none."""
    parts = (record["second_order"], record["spread"], record["kinks"])
    return ErrorProxy(*parts, record.get("rounding", 0.0))


def _size(record: Record) -> float:
    return _read(record).size


def _proxy(cells: Cells) -> str:
    groups = {task: [(s, r) for s, r in cells.items() if s.task == task] for task in _tasks(cells)}
    groups["all cells"] = list(cells.items())
    rows = []
    for task, records in groups.items():
        by = {
            "error proxy": [_size(r) for _, r in records],
            "second order alone": [r["second_order"] for _, r in records],
            "kinks alone": [r["kinks"] for _, r in records],
            "rounding alone": [r.get("rounding", 0.0) for _, r in records],
            "learning rate": [s.rate for s, _ in records],
        }
        for name, size in by.items():
            row = [task, f"{len(records)}", name]
            for push in ("carried", "tangent"):
                error = [r[push]["relative_error"] for _, r in records]
                known = len(set(size)) > 1
                row.append(f"{spearmanr(size, error)[0]:.2f}" if known else "none to rank")
            rows.append(row)
    head = ["task", "cells", "ranked by", "error of `carried push`", "error of `look-ahead`"]
    return markdown(head, rows)


def _verdicts(cells: Cells) -> str:
    rows = []
    for verdict in ("trust", "trust the ranking only", "do not trust"):
        found = [r["carried"] for r in cells.values() if _read(r).verdict == verdict]
        if found:
            ranks, errors = (
                np.percentile([f[name] for f in found], [0, 50, 100])
                for name in ("spearman", "relative_error")
            )
            rows.append(
                [
                    verdict, f"{len(found)}", f"{ranks[1]:.3f} ({ranks[0]:.3f} to {ranks[2]:.3f})",
                    f"{errors[1]:.1%} ({errors[0]:.1%} to {errors[2]:.1%})",
                ]
            )  # fmt: skip
    head = ["verdict", "cells", "Spearman, median (range)", "relative error, median (range)"]
    return markdown(head, rows)


def _cost(cells: Cells) -> str:
    if not cells:
        return "Not measured yet."
    records = list(cells.values())
    rows = [["parameters", *(f"{r['parameters']:,}" for r in records)]]
    rows += [["one training, seconds", *(f"{r['seconds_of_training']:.2f}" for r in records)]]
    for name in records[0]["times"]:
        if name != "training":
            rows.append([f"`{name}`, times", *(f"{r['times'][name]:.1f}" for r in records)])
    for name in records[0]["growth_mb"]:
        rows.append([f"memory of `{name}`, MB", *(f"{r['growth_mb'][name]:.0f}" for r in records)])
    rows.append(["disk, MB", *(f"{r['disk_mb']:.0f}" for r in records)])
    return markdown(["", *(setting.task for setting in cells)], rows)


def _run(stored: dict[str, Any]) -> str:
    with_ = [cell["environment"] for cell in stored.values()]
    commits = ", ".join(dict.fromkeys(e["commit"] for e in with_))
    last = with_[-1]
    return (
        f"{len(stored)} cells, commit {commits}, PyTorch {last['torch']}, Python {last['python']}, "
        f"{last['cores']} cores ({last['threads']} threads), {last['gpu'] or 'no GPU'}"
    )


def _save(chart: Any, path: Path) -> None:
    chart = chart.configure_view(stroke=None).configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))


def _plot_rates(cells: Cells, path: Path) -> None:
    charts = []
    for task in _tasks(cells):
        rows = [
            {"rate": s.rate, "method": method, "spearman": record["spearman"]}
            for s in cells
            if s.task == task
            for method in _shown(task, PLOTTED)
            for record in _of({s: cells[s]}, task, s.rate, method)
        ]
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("rate:Q", title="learning rate", scale=alt.Scale(type="log")),
            color=alt.Color(
                "method:N",
                title=None,
                sort=list(PLOTTED),
                scale=alt.Scale(domain=list(PLOTTED), range=list(COLORS)),
                legend=alt.Legend(labelLimit=260),
            ),
        )
        y = alt.Y("mean(spearman):Q", title="Spearman, mean over seeds")
        points = base.mark_point(size=18, opacity=0.5).encode(y=alt.Y("spearman:Q"))
        lines = base.mark_line().encode(
            y=y,
            strokeDash=alt.condition(
                "indexof(datum.method, 'truth') === 0", alt.value([4, 3]), alt.value([1, 0])
            ),
        )
        charts.append((lines + points).properties(width=280, height=200, title=task))
    _save(alt.concat(*charts, columns=2), path)


def _plot_proxy(cells: Cells, path: Path) -> None:
    charts = []
    for task in _tasks(cells):
        rows = [
            {
                "proxy": max(_size(record), 1e-7),
                "error": record["carried"]["relative_error"],
                "rate": f"{setting.rate:g}",
                "steps": setting.steps,
            }
            for setting, record in cells.items()
            if setting.task == task
        ]
        chart = (
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, opacity=0.9)
            .encode(
                x=alt.X("proxy:Q", title="error proxy", scale=alt.Scale(type="log")),
                y=alt.Y("error:Q", title="measured relative error", scale=alt.Scale(type="log")),
                color=alt.Color(
                    "rate:N",
                    title="learning rate",
                    sort=[f"{rate:g}" for rate in reversed(_rates(cells))],
                    scale=alt.Scale(scheme="viridis"),
                ),
                size=alt.Size("steps:Q", title="steps"),
            )
            .properties(width=300, height=230, title=task)
        )
        charts.append(chart)
    if charts:
        _save(alt.concat(*charts, columns=2), path)
