"""Writes docs/evidence/influence.md and its plots from the cells on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import altair as alt
import numpy as np

from benchmarks import EXACT
from benchmarks.compared import by_seed, compared, require
from benchmarks.influence.cell import CARRY, NOISE, PUBLISHED_FRAME, Setting, Values
from benchmarks.influence.trust import (
    Cells,
    Record,
    plot_proxy,
    proxy_ranks,
    ranks,
    save,
    verdicts,
)
from benchmarks.markdown import fill, long_table, markdown
from benchmarks.results_file import RESULTS, environments
from inrun.replay import ErrorProxy

DOCS = Path(__file__).parents[2] / "docs"
TRUTH = f"truth, start moved by {NOISE:g}"
NO_DECAY = "truth, no weight decay"
TRUTHS = {TRUTH: "truth_again", NO_DECAY: "truth_without_decay"}
LINEAR = 0.05
BESIDE = {
    "SGD_BELOW": "SGD dynamics",
    "TRACIN_BELOW": "TracIn, 5 states",
    "STEP_BELOW": "one step",
}
COSTS = {
    "training, recorded": "a recorded training takes",
    "look-ahead": "look-ahead takes",
    "look-ahead, carried push": "the carried push of the samples left out",
    "look-ahead, carried push, all samples": "that of all samples",
}
PLOTTED = (
    "look-ahead", "look-ahead, carried push", "look-ahead, carried push, kinks", "SGD dynamics",
    "one step", *TRUTHS,
)  # fmt: skip
COLORS = ("#0b6e8a", "#2a9d8f", "#6a4c93", "#e9a23b", "#8d99ae", "#222222", "#b23a48")
SUMMED_UP = (
    "look-ahead, carried push", "look-ahead", EXACT, "SGD dynamics",
    "TracIn, 5 states", "one step",
    *TRUTHS,
)  # fmt: skip
ORDER = (
    "look-ahead", EXACT, "look-ahead, finite push", "look-ahead, carried push",
    "look-ahead, finite push, kinks", "look-ahead, carried push, kinks",
    "look-ahead, momentum only", "SGD dynamics", "TracIn, 5 states", "one step", *TRUTHS,
)  # fmt: skip


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "influence.json").read_text())["cells"]
    names = ("fidelity", "damped", "queries", "decay", "error", "proxy", "cost", "published")
    kinds: dict[str, Cells] = {name: {} for name in names}
    for key, cell in stored.items():
        kind, _, setting = key.partition(": ")
        kinds[kind][Setting.of(setting)] = cell["result"]
    for setting, result in kinds["damped"].items():
        if setting in kinds["fidelity"]:
            kinds["fidelity"][setting]["methods"] |= result["methods"]
    for setting, result in kinds["decay"].items():
        kinds["fidelity"][setting]["truth_without_decay"] = result
    both = [setting for setting in kinds["proxy"] if setting in kinds["error"]]
    judged = {setting: kinds["proxy"][setting] | kinds["error"][setting] for setting in both}
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    _plot_rates(kinds["fidelity"], DOCS / "img" / "influence-rates.svg")
    plot_proxy(judged, DOCS / "img" / "influence-proxy.svg")
    parts = {
        "SUMMARY": _summary(kinds["fidelity"]),
        "TABLES": _tables(kinds["fidelity"]),
        "RELIABILITY": _reliability(kinds["fidelity"]),
        "QUERIES": _queries(kinds["queries"]),
        "PUBLISHED": _published(kinds["published"], kinds["fidelity"]),
        **_above(kinds["fidelity"]),
        "DAMPED": _damped(kinds["fidelity"]),
        "CURVATURE": _curvature(kinds["fidelity"], 1e-3),
        "CURVATURE_LOW": _curvature(kinds["fidelity"], 1e-5),
        "LINEAR": f"{LINEAR:.0%}",
        "TRUST_FINDINGS": (Path(__file__).parent / "trust.md").read_text().strip(),
        "FINDINGS": (Path(__file__).parent / "findings.md").read_text().strip(),
        "KINKS": _kinks(kinds["fidelity"]),
        "PROXY": ranks(judged),
        "VERDICTS": verdicts(judged),
        "TRUST": f"{ErrorProxy.TRUST:g}",
        "RANKING": f"{ErrorProxy.RANKING:g}",
        "COST": _cost(kinds["cost"]),
        "COSTS": _costs(kinds["cost"]),
        **proxy_ranks(judged),
        "RUN": environments(stored),
        "NOISE": f"{NOISE:g}",
        "CARRY": f"{CARRY}",
    }
    fill(Path(__file__).parent / "page.md", parts, DOCS / "evidence" / "influence.md")


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(setting.task for setting in cells))


def _rates(cells: Cells) -> list[float]:
    return sorted({setting.rate for setting in cells}, reverse=True)


def _of(cells: Cells, task: str, rate: float, method: str) -> list[Record]:
    found = [r for s, r in cells.items() if s.task == task and s.rate == rate]
    if method in TRUTHS:
        return [r[TRUTHS[method]] for r in found if TRUTHS[method] in r]
    return [r["methods"][method] for r in found if method in r["methods"]]


def _summary(cells: Cells) -> str:
    """Spearman by task, each cell at all rates, the largest rate first."""
    rows = []
    for method in SUMMED_UP:
        row = [method if method in TRUTHS else f"`{method}`"]
        for task in _tasks(cells):
            found = (_of(cells, task, rate, method) for rate in _rates(cells))
            means = [
                f"{np.mean([f['spearman'] for f in one]):.3f}" if one else "-" for one in found
            ]
            row.append(", ".join(means))
        rows.append(row)
    head = ["", *_tasks(cells)]
    return long_table("influence_spearman", "Spearman by method and model", head, rows)


def _gain(method: str, other: str) -> Callable[[Record], float]:
    """Of one cell, by how much a method's Spearman is above another's."""
    return lambda r: float(r["methods"][method]["spearman"] - r["methods"][other]["spearman"])


def _above(cells: Cells) -> dict[str, str]:
    """In how many tasks and rates look-ahead's mean is above others', and the differences.

    Raises:
        ValueError: one is not told from none.
    """
    places = [(task, rate) for task in _tasks(cells) for rate in _rates(cells)]
    draws, wins = {}, {}
    for name, other in BESIDE.items():
        gain = _gain("look-ahead", other)
        both = [(s, r) for s, r in cells.items() if {"look-ahead", other} <= set(r["methods"])]
        means = [np.mean([gain(r) for s, r in both if (s.task, s.rate) == at]) for at in places]
        wins[name] = f"in {sum(m > 0 for m in means)} of {len(places)}"
        draws[name] = by_seed(
            both, lambda c: (c[0].task, c[0].seed), lambda c, gain=gain: gain(c[1])
        )
    found = compared(draws)
    require(all(x.p < 0.001 for x in found.values()), "look-ahead agrees better than the others.")
    return {name: f"{wins[name]} ({found[name].told()})" for name in BESIDE}


def _damped(cells: Cells) -> str:
    """What damping does to the tangent's relative error and Spearman."""
    pairs = [
        (r["methods"][EXACT], r["methods"]["look-ahead"])
        for r in cells.values()
        if "look-ahead" in r["methods"]
    ]
    said = []
    for name, key, better in (
        ("Relative error", "relative_error", -1), ("Spearman", "spearman", 1),
    ):  # fmt: skip
        exact, damped = (np.array([each[i][key] for each in pairs]) for i in (0, 1))
        above = int((better * (damped - exact) > 0).sum())
        said.append(
            f"{name}, median and worst: {_two(exact, better)} by them, {_two(damped, better)} "
            f"damped, better in {above} of {len(pairs)} cells."
        )
    return " ".join(said)


def _two(values: Values, better: int) -> str:
    worst = values.min() if better > 0 else values.max()
    return f"{np.median(values):.2f} and {worst:.2f}"


def _curvature(cells: Cells, rate: float) -> str:
    """What leaving it out costs in Spearman on mlp-relu, over seeds."""
    gain = _gain(EXACT, "look-ahead, momentum only")
    own = [gain(r) for s, r in cells.items() if (s.task, s.rate) == ("mlp-relu", rate)]
    return compared({"": own})[""].told(3).removeprefix("+")


def _tables(cells: Cells) -> str:
    rows = []
    for task in _tasks(cells):
        seeds = len({s.seed for s in cells if s.task == task})
        out = len(next(r["truth"] for s, r in cells.items() if s.task == task))
        for method in _shown(task, ORDER):
            name = method if method in TRUTHS else f"`{method}`"
            each = (_agreement(_of(cells, task, rate, method)) for rate in _rates(cells))
            rows.append([f"{task}, {seeds} seeds, {out} left out", name, *each])
    head = ["task", "method", *(f"rate {rate:g}" for rate in _rates(cells))]
    return long_table("influence", "Every task, method and rate", head, rows)


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
    truth, first = (
        np.array(record["truth"]),
        np.array(record["methods"][EXACT]["values"]),
    )
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
    return long_table("influence_truth", "How far the truth agrees with itself", head, rows)


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
    head = ["task", "rate", "queries", *(f"`{m}`" for m in methods)]
    return long_table("influence_queries", "Mean Spearman over single queries", head, rows)


def _published(cells: Cells, ours: Cells) -> str:
    """Their judgement and ours side by side, of the same seeds."""
    rows = []
    for setting, record in cells.items():
        own = ours[setting]["methods"]
        for name in PUBLISHED_FRAME:
            each = own[name].get("spearman_each")
            rows.append([
                setting.task, f"{setting.rate:g}", f"`{name}`", f"{record[name]:.3f}",
                "" if each is None else f"{each:.3f}", f"{own[name]['spearman']:.3f}",
            ])  # fmt: skip
    head = [
        "task", "rate", "method", "no decay, query by query", "decay 0.01, query by query",
        "decay 0.01, mean loss",
    ]  # fmt: skip
    return long_table("influence_published", "From the published frame to ours", head, rows)


def _kinks(cells: Cells) -> str:
    rows = []
    for task in [task for task in ("mlp-relu", "mlp-gelu") if task in _tasks(cells)]:
        row = [task]
        for rate in _rates(cells):
            found = _of(cells, task, rate, "look-ahead, carried push")
            row.append(f"{np.median([f['relative_error'] for f in found]):.1%}" if found else "")
        rows.append(row)
    return markdown(["task", *(f"rate {rate:g}" for rate in _rates(cells))], rows)


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
    caption = "Times of a plain training (medians of three rounds), memory and disk"
    return long_table("influence_cost", caption, ["", *(s.task for s in cells)], rows)


def _costs(cells: Cells) -> str:
    """The least and the most over tasks."""
    told = []
    for name, said in COSTS.items():
        times = [r["times"][name] for r in cells.values()]
        told.append(f"{said} {min(times):.1f} to {max(times):.1f}")
    return ", ".join(told)


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
    save(alt.concat(*charts, columns=2), path)
