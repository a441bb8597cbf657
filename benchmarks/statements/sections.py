"""Sections of the page: what judges on five kinds of data, checks by training again, intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.compared import LEVEL, above, compared
from benchmarks.markdown import long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.statements import checks, judges
from inrun.uses import half_interval
from inrun.uses._gain import half_at_every_look

Cells = dict[str, Any]
FEW = 6  # audit checks, below which no interval is printed
SAID = {
    "covered": f"Student's interval of {checks.PLANNED} planned trainings holds the mean gain",
    "covered at every look": f"the interval of every look, of 2 to {checks.MOST} trainings at once",
    "supported": f"supported, no gain, {checks.PLANNED} planned",
    "supported by 10 looks, Student": "supported by Student's interval in some look of 2 to 10",
    "supported by 10 looks": "supported by the rule in some look of 2 to 10",
    "supported by 20 looks, Student": "supported by Student's interval in some look of 2 to 20",
    "supported by 20 looks": "supported by the rule in some look of 2 to 20",
    "next inside": "the next training's gain lies where it is expected",
    "smallest seen": "supported where the gain is the smallest that the check could have seen",
}
STATED = ("0.95", "0.95", "0.025", "0.025", "0.05", "0.025", "0.05", "0.95", "0.8")


def parts() -> dict[str, str]:
    """By name in the template."""
    judged, checked = _read("judges"), _read("checks")
    planned = np.arange(checks.PLANNED)  # the ratio of the two widths is the same for all numbers
    return {
        "CHECKS": f"{checks.CHECKS * len(checked):,}",
        "POOL": str(checks.TRAININGS),
        "JUDGED": _judged(judged),
        "JUDGED_PRUNED": _pruned(judged),
        **_told(judged),
        "CHECKED": _checked(checked),
        "AUDITED": _audited(checked),
        "SAMPLED": _sampled(checked),
        "WIDER": f"{half_at_every_look(planned) / half_interval(planned):.1f}",
        "RUN_JUDGES": environments(judged).split(" (")[0],
        "RUN_CHECKS": environments(checked).split(" (")[0],
    }


def _read(name: str) -> Cells:
    cells: Cells = json.loads((RESULTS / f"{name}.json").read_text())["cells"]
    return cells


def _groups(cells: Cells) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for key, cell in cells.items():
        s = judges.Setting.of(key)
        shares = "" if s.shares == "natural" else f", {s.shares}"
        title = f"{s.task}{shares}, {f'{s.noise:.0%} wrong' if s.noise else 'no wrong labels'}"
        found.setdefault(title, []).append(cell["result"])
    return found


def _difference(numbers: Sequence[float], digits: int) -> str:
    array = np.array(numbers)
    return f"{array.mean():+.{digits}f} ± {half_interval(array):.{digits}f}"


def _judged(cells: Cells) -> str:
    """AUC, harmful shares and agreement of halves, even and by training shares."""
    names = ("auc", "largest class harmful", "halves", "halves within classes")
    rows = []
    for title, results in _groups(cells).items():
        row = [title]
        for name in names:
            each = [[r["judged"][judge][name] for r in results] for judge in ("even", "training")]
            row.append("" if None in each[0] else ", ".join(f"{np.mean(x):.3f}" for x in each))
        rows.append(row)
    caption = "Whole data sets"
    return long_table("statements_judged", caption, ["data", *names], rows)


def points(result: dict[str, Any], judge: str, balance: str, figure: int) -> float:
    """Points over random balanced pruning, mean over shares; figure 0 accuracy, 1 by classes."""
    ours, control = result["pruned"][judge][balance], result["pruned"]["random"]["balanced"]
    return 100 * float(np.mean([ours[d][figure] - control[d][figure] for d in control]))


def gain_of_shares(task: str, noise: float, balance: str) -> str:
    """Points of accuracy that pruning gains by training shares over even weights."""
    found = {judges.Setting.of(k): cell["result"] for k, cell in _read("judges").items()}
    chosen = [
        r for s, r in found.items() if (s.task, s.shares, s.noise) == (task, "natural", noise)
    ]
    return _difference(
        [points(r, "training", balance, 0) - points(r, "even", balance, 0) for r in chosen], 2
    )


def _told(cells: Cells) -> dict[str, str]:
    """What is told of training shares less even weights, corrected for its comparisons."""
    areas, pruned = {}, {}
    for title, results in _groups(cells).items():
        both = [[r["judged"][judge]["auc"] for r in results] for judge in ("training", "even")]
        if None not in both[0]:
            areas[title] = [a - b for a, b in zip(*both, strict=True)]
        for balance in ("plain", "balanced"):
            for figure, name in enumerate(("accuracy", "class mean of accuracy")):
                pruned[f"{title}, {balance}, {name}"] = [
                    points(r, "training", balance, figure) - points(r, "even", balance, figure)
                    for r in results
                ]
    return {
        "AUC_TOLD": "; ".join(above(compared(areas))),
        "PRUNINGS": str(len(pruned)),
        "PRUNED_TOLD": "; ".join(
            f"{name} ({gain.told()})" for name, gain in compared(pruned).items() if gain.p < LEVEL
        ),
    }


def _pruned(cells: Cells) -> str:
    """By how much training shares prune better than even weights, in points."""
    rows = []
    for title, results in _groups(cells).items():
        row = [title]
        for balance in ("plain", "balanced"):
            for figure in (0, 1):
                gains = [
                    points(r, "training", balance, figure) - points(r, "even", balance, figure)
                    for r in results
                ]
                row.append(_difference(gains, 2))
        rows.append(row)
    figures = ("accuracy", "class mean of accuracy")
    named = [f"{balance}: {figure}" for balance in ("plain", "balanced") for figure in figures]
    caption = "Pruning"
    return long_table("statements_pruned", caption, ["data", *named], rows)


def _mean(cells: Cells, read: Callable[[dict[str, Any]], float]) -> str:
    return f"{np.mean([read(cell['result']) for cell in cells.values()]):.3f}"


def stated() -> list[list[str]]:
    """Of checks and sampled totals, for the table of claims."""
    checked = _read("checks")
    rows = [
        [SAID[name], STATED[list(SAID).index(name)],
         _mean(checked, lambda r, n=name: r["checks"]["trainings"][n])]
        for name in ("supported by 20 looks", "next inside", "smallest seen")
    ]  # fmt: skip
    held = _mean(checked, lambda r: r["totals"]["8"]["Student's t"])
    rows.append(["totals of `Sampled(8)` within Student's interval", "0.95", held])
    held = _mean(checked, lambda r: r["audits"]["6"]["order"])
    return [*rows, ["the median of 6 audit checks in its interval", "0.95", held]]


def _checked(cells: Cells) -> str:
    rows = []
    for (name, said), stated in zip(SAID.items(), STATED, strict=True):
        each = [
            _mean(cells, lambda r, kind=kind, name=name: r["checks"][kind][name])
            for kind in ("trainings", "normal")
        ]
        rows.append([said, stated, *each])
    head = ["", "stated", "differences of trainings", "normal differences"]
    return long_table("statements_checks", "Checks", head, rows)


def _audited(cells: Cells) -> str:
    rows = [
        [
            str(n),
            _mean(cells, lambda r, n=n: r["audits"][str(n)]["bootstrap"]),
            "none is given"
            if n < FEW
            else _mean(cells, lambda r, n=n: r["audits"][str(n)]["order"]),
        ]
        for n in checks.AUDITS
    ]
    head = ["checks", "bootstrap of the median, as before", "between two checks"]
    return long_table("statements_medians", "Audits", head, rows)


def _sampled(cells: Cells) -> str:
    rows = [
        [
            f"`Sampled({every})`",
            *(
                _mean(cells, lambda r, e=every, q=quantile: r["totals"][str(e)][q])
                for quantile in checks.QUANTILES
            ),
        ]
        for every in checks.EVERY
    ]
    head = ["", *(f"{name} standard errors" for name in checks.QUANTILES)]
    return long_table("statements_sampled", "Sampled totals", head, rows)
