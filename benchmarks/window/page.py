"""Writes docs/evidence/window.md and its plot from the cells on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import vl_convert

from benchmarks.markdown import fill, long_table, markdown
from benchmarks.results_file import RESULTS, environments
from benchmarks.window.cell import DROPS, EVERY, LENGTHS, RANDOM
from benchmarks.window.tasks import Setting, grid
from inrun.ledger import LEAST, least_agreement

DOCS = Path(__file__).parents[2] / "docs"
CLEARLY = 0.05
SWUNG = (0.4, 0.6)  # cosines of long windows that say little
AIM_R, AIM_RANKS = 0.97, 0.95  # what is asked of windows where no less is promised
BEFORE = (
    (0.9, 0.99),
    (0.8, 0.97),
    (0.75, 0.9),
    (0.7, 0.87),
    (0.65, 0.8),
    (0.45, 0.64),
    (0.3, 0.43),
)
SHOWN = {
    "steps": "steps in the mean", "cosine": "cosine", "pearson": "R",
    "pearson_trimmed": "R without the 1 % largest", "spearman": "Spearman",
    "spearman_trimmed": "Spearman without them", "visits_pearson": "visits: R",
    "visits_pearson_trimmed": "R without them", "visits_spearman": "visits: Spearman",
    "sum_ratio": "sum",
}  # fmt: skip

Cells = dict[Setting, dict[str, Any]]


class Arm(NamedTuple):
    """A training in windows, or a third of it (1 to 3; 0 is all of it), and what was found."""

    setting: Setting
    window: str
    third: int
    found: dict[str, float]

    @property
    def told(self) -> float:
        """The rank correlation that the ledger says to expect at least."""
        return least_agreement(self.found["cosine"], self.found["steps"])

    @property
    def missed(self) -> bool:
        """Whether less was found; 0 is no promise."""
        return 0 < self.told > self.found["spearman"]


def arms(cells: Cells) -> Iterator[Arm]:
    """All trainings in windows, each with its thirds."""
    for setting, cell in cells.items():
        for window, found in cell["arms"].items():
            for third, part in enumerate([found["whole"], *found["thirds"]]):
                yield Arm(setting, window, third, part)


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "window.json").read_text())["cells"]
    cells = {Setting.of(key): cell["result"] for key, cell in stored.items()}
    whole = [arm for arm in arms(cells) if not arm.third]
    thirds = [arm for arm in arms(cells) if arm.third]
    here = Path(__file__).parent
    parts = {
        "FINDINGS": (here / "findings.md").read_text().strip(),
        "SAME": str(sum(cell["same_weights"] for cell in cells.values())),
        "CELLS": str(len(cells)),
        "MISSING": _missing(cells),
        **_promises(whole, thirds),
        "AUTO": _auto(whole, cells),
        "THIRDS": _thirds(thirds),
        "AUC": _auc(cells),
        "PRUNED": _pruned(cells),
        "AGREEMENT": long_table(
            "window", "Agreement by task, rate and window",
            ["task", "rate", "window", "seeds", *SHOWN.values(), "lowest Spearman of a seed"],
            _agreement(whole),
        ),
        "PLOT": "![Rank correlation of totals against the cosine of the ends](../img/window.svg)",
        "ENVIRONMENTS": environments(stored),
    }  # fmt: skip
    fill(here / "page.md", parts, DOCS / "evidence" / "window.md")
    _plot(whole, DOCS / "img" / "window.svg")


def _missing(cells: Cells) -> str:
    """What of the grid is not there, in a sentence."""
    left = Counter(s.task for s in map(Setting.of, grid(quick=False)) if s not in cells)
    said = ", ".join(f"{n} of `{task}`" for task, n in left.items())
    return f" Not measured yet, of settings: {said}." if left else ""


def _promises(whole: Sequence[Arm], thirds: Sequence[Arm]) -> dict[str, str]:
    """How often less was found than the ledger says to expect, and than is asked for."""
    sure = [arm.found for arm in whole if arm.told >= AIM_RANKS]
    auto = [arm.found for arm in whole if arm.window == "auto"]
    long = [a.found for a in whole if a.window == "20"]
    long = [f["spearman"] for f in long if SWUNG[0] <= f["cosine"] <= SWUNG[1]]
    lowest, ranks = (min(f[name] for f in auto) for name in ("pearson", "spearman"))
    return {
        "TRAININGS": str(len(whole)),
        "MISSED": str(sum(arm.missed for arm in whole)),
        "MISSED_BEFORE": str(sum(arm.found["spearman"] < before(arm) for arm in whole)),
        "UNSEEN": str(unseen_missed(whole)),
        "THIRDS_COUNT": str(len(thirds)),
        "THIRDS_MISSED": str(sum(arm.missed for arm in thirds)),
        "SURE": str(len(sure)),
        "BELOW_RANKS": str(sum(f["spearman"] < AIM_RANKS for f in sure)),
        "BELOW_R": str(sum(f["pearson"] < AIM_R for f in sure)),
        "AUTO_COUNT": str(len(auto)),
        "AUTO_REACHED": str(_reached(auto, "")),
        "VISITS_REACHED": str(_reached(auto, "visits_")),
        "VISITS_LOWEST": f"{min(f['visits_spearman'] for f in auto):.3f}",
        "SUMS": f"{min(f['sum_ratio'] for f in auto):.2f} to "
        f"{max(f['sum_ratio'] for f in auto):.2f}",
        "AUTO_LOWEST": f"{lowest:.3f} and {ranks:.3f}",
        "AUTO_STEPS": f"{min(f['steps'] for f in auto):.1f} to {max(f['steps'] for f in auto):.1f}",
        "SWUNG": f"{SWUNG[0]} to {SWUNG[1]}",
        "LONG_LOW": f"{min(long):.2f}",
        "LONG_HIGH": f"{max(long):.2f}",
        "CLEARLY": str(CLEARLY),
        "AIM_R": str(AIM_R),
        "AIM_RANKS": str(AIM_RANKS),
        "SHORT": f"{min(LEAST):g}",
    }


def _reached(found: Sequence[dict[str, float]], of: str) -> int:
    """How many have what is asked for, in totals or in 'visits_'."""
    return sum(f[f"{of}pearson"] >= AIM_R and f[f"{of}spearman"] >= AIM_RANKS for f in found)


def before(arm: Arm) -> float:
    """What was promised by the mean cosine alone, of two tasks of these."""
    return next((least for bound, least in BEFORE if arm.found["cosine"] >= bound), 0.35)


def unseen_missed(whole: Sequence[Arm]) -> int:
    """How many trainings are clearly below the least of those of other tasks.

    Of these, the ones of at least its cosine, and of windows as long or longer.
    """
    missed = 0
    for arm in whole:
        others = [
            a.found["spearman"]
            for a in whole
            if a.setting.task != arm.setting.task
            and a.found["cosine"] >= arm.found["cosine"]
            and a.found["steps"] >= arm.found["steps"]
        ]
        missed += bool(others) and arm.found["spearman"] < min(others) - CLEARLY
    return missed


def _grouped(found: Sequence[Arm]) -> dict[tuple[str, float, str], list[Arm]]:
    """By task, rate and window, over seeds."""
    groups: dict[tuple[str, float, str], list[Arm]] = {}
    for arm in found:
        groups.setdefault((arm.setting.task, arm.setting.rate, arm.window), []).append(arm)
    return groups


def _median(group: Sequence[Arm], what: str) -> str:
    return f"{np.median([arm.found[what] for arm in group]):.3f}"


def _agreement(whole: Sequence[Arm]) -> list[list[str]]:
    return [
        [task, f"{rate:g}", window, str(len(group)), *(_median(group, what) for what in SHOWN),
         f"{min(arm.found['spearman'] for arm in group):.3f}"]
        for (task, rate, window), group in _grouped(whole).items()
    ]  # fmt: skip


def _auto(whole: Sequence[Arm], cells: Cells) -> str:
    """What `auto` chose, what it was worth, and what was told of it."""
    rows = []
    for (task, rate, _), group in _grouped([a for a in whole if a.window == "auto"]).items():
        parts = [cells[arm.setting]["arms"]["auto"]["thirds"] for arm in group]
        steps = [np.median([seed[k]["steps"] for seed in parts]) for k in range(3)]
        told = min(arm.told for arm in group)
        rows.append([
            task, f"{rate:g}", ", ".join(f"{n:.3g}" for n in steps),
            *(_median(group, what) for what in ("cosine", "pearson", "pearson_trimmed")),
            *(_median(group, what) for what in ("spearman", "visits_spearman")),
            f"{told:.2g}",
        ])  # fmt: skip
    head = [
        "task", "rate", "steps by third", "cosine", "R", "without 1 %", "Spearman",
        "of visits", "expected",
    ]  # fmt: skip
    return markdown(head, rows)


def _thirds(thirds: Sequence[Arm]) -> str:
    """The wide model's whole schedule, third by third."""
    rows = []
    for (_, rate, window), group in _grouped(
        [a for a in thirds if a.setting.task == "wide"]
    ).items():
        each = (
            f"{a.found['cosine']:.2f}: {a.found['pearson']:.3f}, {a.found['spearman']:.3f}"
            for a in group
        )
        rows.append([f"{rate:g}", window, *each])
    head = ["rate", "window", "rise and top", "middle", "end"]
    return long_table("window_thirds", "By rate, window and third", head, rows)


def _seeds(cells: Cells, part: str) -> dict[str, list[dict[str, Any]]]:
    """By task, that part of the seeds' cells."""
    found: dict[str, list[dict[str, Any]]] = {}
    for setting, cell in cells.items():
        if part in cell:
            found.setdefault(setting.task, []).append(cell[part])
    return found


def _auc(cells: Cells) -> str:
    """Of every step, and how much more windows have in the same seeds."""
    rows = []
    for task, seeds in _seeds(cells, "auc").items():
        more = ([s[name] - s[EVERY] for s in seeds if name in s] for name in LENGTHS)
        whole = f"{np.mean([seed[EVERY] for seed in seeds]):.3f}"
        rows.append([task, whole, *(f"{np.mean(each):+.3f}" for each in more)])
    head = ["AUC", "every step", *(f"windows: {name}" for name in LENGTHS)]
    return long_table("window_auc", "AUC by task and window", head, rows)


def _pruned(cells: Cells) -> str:
    rows = []
    for task, seeds in _seeds(cells, "pruned").items():
        everything = np.mean([seed["all"] for seed in seeds])
        for name in (RANDOM, EVERY, "10", "auto"):
            each = (f"{np.mean([seed[name][str(share)] for seed in seeds]):.1%}" for share in DROPS)
            shown = {RANDOM: "at random", EVERY: "every step"}.get(name, f"windows: {name}")
            rows.append([f"{task} (all: {everything:.1%})", shown, *each])
    head = ["accuracy", "by", *(f"without {share:.0%}" for share in DROPS)]
    return long_table("window_pruned", "Accuracy by task, ranking and share", head, rows)


def _plot(whole: Sequence[Arm], path: Path) -> None:
    rows = [
        {"task": arm.setting.task, "window": arm.window, "cosine": arm.found["cosine"],
         "ranks": arm.found["spearman"]}
        for arm in whole
    ]  # fmt: skip
    said = [{"cosine": c, "ranks": least_agreement(c, min(LEAST))} for c in np.linspace(0, 1, 401)]
    x = alt.X("cosine:Q", title="mean cosine of the windows' ends")
    y = alt.Y("ranks:Q", title="Spearman of totals")
    points = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=45)
    points = points.encode(
        x=x, y=y, color=alt.Color("task:N", title=None),
        shape=alt.Shape("window:N", title="window", sort=list(LENGTHS)),
    )  # fmt: skip
    line = alt.Chart(alt.Data(values=said)).mark_line(color="#8d99ae").encode(x=x, y=y)
    chart = (line + points).properties(width=420, height=260).configure_view(stroke=None)
    path.write_text(vl_convert.vegalite_to_svg(chart.configure(background="white").to_json()))


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    found = arms({Setting.of(key): cell["result"] for key, cell in cells.items()})
    auto = _grouped([arm for arm in found if arm.window == "auto" and not arm.third])
    return [
        (
            f"`auto`, {task}, rate {rate:g}: Spearman with `EveryStep`",
            _median(group, "spearman"),
            "",
        )
        for (task, rate, _), group in auto.items()
    ]
