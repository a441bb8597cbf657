"""The error proxy beside the measured error: rank correlations, verdicts, a plot.

A cell's measured error is of one seed and a hundred left-out samples, so it is noisy itself. Cells
are therefore compared by their means over the seeds that measured the whole grid, and how well the
error of one seed ranks that of another is shown beside: no proxy can do much better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from scipy.stats import spearmanr

from benchmarks.influence.cell import Setting
from benchmarks.markdown import long_table, markdown
from inrun.replay import ErrorProxy

Record = dict[str, Any]
Cells = dict[Setting, Record]
Place = tuple[str, float, int]
Grid = dict[Place, list[Record]]

ERRORS: dict[str, Callable[[Record], float]] = {
    "relative error of `carried push`": lambda r: float(r["carried"]["relative_error"]),
    "1 - Spearman of `carried push`": lambda r: 1 - float(r["carried"]["spearman"]),
    "relative error of `look-ahead`": lambda r: float(r["tangent"]["relative_error"]),
}
FIRST = "relative error of `carried push`"
ALL = {"ALL": ("mlp-gelu", "mlp-relu"), "GELU": ("mlp-gelu",), "RELU": ("mlp-relu",)}
ANOTHER = "the same error, another seed"


def read(record: Record) -> ErrorProxy:
    """The proxy of a cell."""
    names = ("second_order", "spread", "kinks", "rounding")
    return ErrorProxy(*(record[name] for name in names))


def seed_by_seed(cells: Cells, tasks: Sequence[str]) -> Grid:
    """Each place of the grid with its records, of the seeds that measured all of it."""
    found: dict[int, dict[Place, Record]] = {}
    for setting, record in cells.items():
        if setting.task in tasks:
            place = (setting.task, setting.rate, setting.steps)
            found.setdefault(setting.seed, {})[place] = record
    most = max(len(records) for records in found.values())
    whole = [records for _, records in sorted(found.items()) if len(records) == most]
    return {place: [records[place] for records in whole] for place in whole[0]}


def _measures(grid: Grid) -> dict[str, list[list[float]]]:
    """What the places are ranked by, a number a seed."""
    sizes: dict[str, Callable[[Record], float]] = {
        "error proxy": lambda r: read(r).size,
        "second order alone": lambda r: read(r).second_order,
        "kinks alone": lambda r: read(r).kinks,
        "rounding alone": lambda r: read(r).rounding,
    }
    found = {
        name: [[f(r) for r in records] for records in grid.values()] for name, f in sizes.items()
    }
    found["learning rate"] = [[rate] * len(records) for (_, rate, _), records in grid.items()]
    found["learning rate times steps"] = [
        [rate * steps] * len(records) for (_, rate, steps), records in grid.items()
    ]
    return found


def _ranked(measure: Sequence[Sequence[float]], error: Sequence[Sequence[float]]) -> str:
    """Rank correlation of the seeds' means, and of every seed alone."""
    by, against = np.array(measure), np.array(error)  # (places, seeds)
    if len(set(by.flat)) == 1:
        return "none to rank"
    whole = spearmanr(by.mean(1), against.mean(1))[0]
    alone = [spearmanr(by[:, s], against[:, s])[0] for s in range(by.shape[1])]
    return f"{whole:.2f}" + (f" ({', '.join(f'{x:.2f}' for x in alone)})" if len(alone) > 1 else "")


def _other_seeds(error: Sequence[Sequence[float]]) -> str:
    """How one seed's error ranks another's, mean over pairs."""
    columns = np.array(error).T
    found = [spearmanr(a, b)[0] for a, b in permutations(columns, 2)]
    return f"{np.mean(found):.2f}" if found else "one seed only"


def ranks(cells: Cells) -> str:
    """The table of rank correlations, a group a task and one of all."""
    tasks = list(dict.fromkeys(setting.task for setting in cells))
    rows = []
    for name, group in [*((task, [task]) for task in tasks), ("all", tasks)]:
        grid = seed_by_seed(cells, group)
        seeds = len(next(iter(grid.values())))
        errors = [[[f(r) for r in records] for records in grid.values()] for f in ERRORS.values()]
        head = [name, f"{len(grid)}", f"{seeds}"]
        for measure, sizes in _measures(grid).items():
            rows.append([*head, measure, *(_ranked(sizes, error) for error in errors)])
        rows.append([*head, ANOTHER, *(_other_seeds(error) for error in errors)])
    head = ["task", "cells", "seeds", "ranked by", *ERRORS]
    return long_table("influence_proxy", "Rank correlation with the measured error", head, rows)


def proxy_ranks(cells: Cells) -> dict[str, str]:
    """By name in the findings: the proxy's and the rate's rank correlation with the error."""
    told = {}
    for name, group in ALL.items():
        grid = seed_by_seed(cells, group)
        error = [[ERRORS[FIRST](r) for r in records] for records in grid.values()]
        for measure, short in (("error proxy", "PROXY"), ("learning rate", "RATE")):
            told[f"{short}_{name}"] = _ranked(_measures(grid)[measure], error).split(" ")[0]
    return told


def verdicts(cells: Cells) -> str:
    """What each verdict meant, over all measured cells."""
    rows = []
    for verdict in ("trust", "trust the ranking only", "do not trust"):
        found = [r["carried"] for r in cells.values() if read(r).verdict == verdict]
        if found:
            places, errors = (
                np.percentile([f[name] for f in found], [0, 50, 100])
                for name in ("spearman", "relative_error")
            )
            rows.append(
                [
                    verdict, f"{len(found)}",
                    f"{places[1]:.3f} ({places[0]:.3f} to {places[2]:.3f})",
                    f"{errors[1]:.1%} ({errors[0]:.1%} to {errors[2]:.1%})",
                ]
            )  # fmt: skip
    head = ["verdict", "cells", "Spearman, median (range)", "relative error, median (range)"]
    return markdown(head, rows)


def save(chart: Any, path: Path) -> None:
    """As an SVG on white."""
    chart = chart.configure_view(stroke=None).configure(background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()))


def plot_proxy(cells: Cells, path: Path) -> None:
    """The proxy against either error, a point a cell and seed."""
    names = list(ERRORS)[:2]
    charts = []
    for task in dict.fromkeys(setting.task for setting in cells):
        for name in names:
            rows = [
                {
                    "proxy": max(read(record).size, 1e-7),
                    "error": max(ERRORS[name](record), 1e-5),
                    "rate": f"{setting.rate:g}",
                    "steps": setting.steps,
                }
                for setting, record in cells.items()
                if setting.task == task
            ]
            charts.append(_scatter(rows, task, name.replace("`", "")))
    if charts:
        save(alt.concat(*charts, columns=2), path)


def _scatter(rows: list[dict[str, Any]], task: str, error: str) -> Any:
    rates = sorted({float(row["rate"]) for row in rows}, reverse=True)
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, opacity=0.8)
        .encode(
            x=alt.X("proxy:Q", title="error proxy", scale=alt.Scale(type="log")),
            y=alt.Y("error:Q", title=error, scale=alt.Scale(type="log")),
            color=alt.Color(
                "rate:N",
                title="learning rate",
                sort=[f"{rate:g}" for rate in rates],
                scale=alt.Scale(scheme="viridis"),
            ),
            size=alt.Size("steps:Q", title="steps"),
        )
        .properties(width=300, height=230, title=task)
    )
