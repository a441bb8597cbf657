"""Writes docs/evidence/statements.md from the cells on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import fill, long_table
from benchmarks.results_file import RESULTS, environments
from benchmarks.statements import audits, flips, halves, sections, tails
from benchmarks.statements.cell import ASSIGNMENTS, DROPPED, SURE, TRAININGS, Setting
from benchmarks.statements.measured import halved_rows, halved_table, tails_table, tails_told
from inrun.uses._wrong_labels import CLEAR, SEPARATED

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "statements.md"


def write_page() -> None:
    """Reads what is there and writes the page."""
    stored = json.loads((RESULTS / "statements.json").read_text())["cells"]
    cells = _by_setting(stored)
    flipped = [(flips.Setting.of(key), c["result"]) for key, c in _of_kind(stored, "flips")]
    audited = [(audits.Setting.of(key), c["result"]) for key, c in _of_kind(stored, "audit")]
    halved = [(halves.Setting.of(key), c["result"]) for key, c in _of_kind(stored, "halves")]
    simulated = [(tails.Setting.of(key), c["result"]) for key, c in _of_kind(stored, "tails")]
    parts = {
        "TRAININGS": str(TRAININGS),
        "OTHERS": str(TRAININGS - 1),
        "CONFIDENCE": f"{SURE:.0%}",
        "DROPPED": str(DROPPED),
        "JUDGES": _judges(cells),
        "SURE": _sure(cells),
        "AGAIN": _again(cells),
        "STATED": _stated(cells, flipped, audited) + halved_rows(halved),
        "AGREEMENTS": _agreements(cells),
        "VALIDATION": halved_table(halved),
        "HALVED": f"{halves.TRAININGS} trainings in each of {len(halved)} draws",
        "CONFUSED": _confused(flipped),
        "TAILS": tails_table(simulated),
        "TAILS_TOLD": tails_told(simulated),
        "CLEAR": f"{CLEAR:.2f}",
        "SOURCES": _sources(cells),
        "ASSIGNMENTS": str(ASSIGNMENTS),
        "COUNTS": _counts(flipped),
        "SEPARATED": f"{SEPARATED:.2f}",
        "AUDITS": _audits(audited),
        "RUN": environments(stored),
        **sections.parts(),
    }
    fill(Path(__file__).parent / "page.md", parts, PAGE)


Cells = dict[Setting, dict[str, Any]]
LATE = ("8", "16")  # visits


def _stated(
    cells: Cells,
    flipped: Sequence[tuple[flips.Setting, dict[str, Any]]],
    audited: Sequence[tuple[audits.Setting, dict[str, Any]]],
) -> str:
    """Claim, stated, measured: what the sections below come to."""
    trained = [r["training"] for r in cells.values()]
    clean = [
        cell["training"] for s, cell in cells.items() if (s.shares, s.noise) == ("imbalanced", 0.0)
    ]
    rows = [["share of the largest class harmful, clean imbalanced digits, by training shares",
             "small", _mean(clean, "largest class harmful")]]  # fmt: skip
    sure = {name: [] for name in ("stated", "mean of others", "next")}
    again: dict[str, list[str]] = {"expected positive": [], "positive again": []}
    for visits in LATE:
        claims = _sum(trained, visits, "claims")
        for name, told in sure.items():
            told.append(f"{_sum(trained, visits, name) / claims:.3f}")
        count = sum(len(r["visits"][visits]["claims"]) for r in trained)
        for name, told in again.items():
            told.append(f"{_sum(trained, visits, name) / count:.2f}")
    stated, others, following = map(", ".join, sure.values())
    rows.append(["surely harmful, 8 and 16 visits", stated,
                 f"{others}; in the next training {following}"])  # fmt: skip
    rows.append([f"of {DROPPED} lowest, positive in another training, 8 and 16 visits",
                 *map(", ".join, again.values())])  # fmt: skip
    found = [[r["agreements"][v]["normalised"] for r in trained] for v in ("2", *LATE)]
    stated, real = (
        ", ".join(f"{np.mean([x[name] for x in part]):.2f}" for part in found)
        for name in ("stated", "another training")
    )
    over = (sum(x["stated"] > x["another training"] + 0.05 for x in part) for part in found)
    rows.append(["R with another training, 2, 8 and 16 visits", stated,
                 f"{real}; too high in {', '.join(map(str, over))} of {len(trained)}"])  # fmt: skip
    equal = [x["single rows"] for r in trained for x in r["sources"]]
    told = [f"{np.mean([x[name] for x in equal]):.3f}" for name in ("values hold", "one is named")]
    rows.append(["ten equal sources: all intervals hold; one is told", "0.95; 0.05",
                 "; ".join(told)])  # fmt: skip
    counted = [r[v] for _, r in flipped for v in ("8", "16") if r[v]["told"]]
    rows.append(["the interval holds how many labels are wrong", "0.95",
                 f"{_covered(counted)} of {len(counted)} counts"])  # fmt: skip
    bounds, n, stated, came = map(", ".join, zip(*_calibrated(flipped), strict=True))
    rows.append([f"a label is wrong, {bounds} ({n} rows)", stated, came])
    rows += sections.stated()
    wrong = [r for s, r in audited if s.audit == "3-of-10-classes"]
    named = sum("Classes without validation rows" in r["named"] for r in wrong)
    rows.append(["an audit names a validation set of 3 of 10 classes", "always",
                 f"{named} of {len(wrong)}"])  # fmt: skip
    head = ["claim", "stated", "measured"]
    return long_table("statements", "Stated and measured", head, rows)


def _groups(cells: Cells) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for setting, cell in cells.items():
        for judge, result in cell.items():
            name = f"{setting.shares}, {setting.noise:.0%} wrong"
            found.setdefault((name, judge), []).append(result)
    return found


def _by_setting(stored: Mapping[str, Any]) -> Cells:
    return {Setting.of(key): cell["result"] for key, cell in _of_kind(stored, "shares")}


def _of_kind(stored: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    """A cell's name begins with its kind's first field."""
    return [(key, cell) for key, cell in stored.items() if key.startswith(f"{kind}=")]


def summary(cells: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For the page of all benchmarks."""
    said = []
    for (name, judge), results in _groups(_by_setting(cells)).items():
        for told in ("auc", "largest class harmful"):
            if number := _mean(results, told):
                said.append((f"{name}, judged {judge}: {told}", number, ""))
    return said


def _mean(results: list[dict[str, Any]], name: str) -> str:
    numbers = [x for result in results for x in result[name]]
    return f"{np.mean(numbers):.3f}" if numbers else ""


def _judges(cells: Cells) -> str:
    names = ("auc", "largest class harmful", "other validation set")
    rows = [[*key, *(_mean(r, name) for name in names)] for key, r in _groups(cells).items()]
    head = ["data", "judged", *names]
    return long_table("statements_judges", "300 samples", head, rows)


def _sum(results: list[dict[str, Any]], visits: str, name: str) -> float:
    return float(sum(sum(result["visits"][visits][name]) for result in results))


def _sure(cells: Cells) -> str:
    rows = []
    for key, results in _groups(cells).items():
        for visits in ("8", "16"):
            claims = _sum(results, visits, "claims")
            told = [_sum(results, visits, n) for n in ("stated", "mean of others", "next")]
            shares = [f"{x / claims:.3f}" for x in told] if claims else ["", "", ""]
            rows.append([*key, visits, f"{claims:.0f}", *shares])
    head = ["data", "judged", "visits", "claims", "stated", "mean of others", "next"]
    return long_table("statements_sure", "Surely harmful", head, rows)


def _again(cells: Cells) -> str:
    rows = []
    for key, results in _groups(cells).items():
        for visits in ("8", "16"):
            count = sum(len(r["visits"][visits]["claims"]) for r in results)
            told = [_sum(results, visits, n) for n in ("expected positive", "positive again")]
            rows.append([*key, visits, *(f"{x / count:.2f}" for x in told)])
    head = ["data", "judged", "visits", "expected", "came"]
    return long_table("statements_again", "Positive in another training", head, rows)


def _agreements(cells: Cells) -> str:
    """Means over draws and trainings, of all data together, by ranking and visits."""
    names = ("stated", "another training", "stated within", "within", "between labels")
    rows = []
    for ranking in ("normalised", "total", "harm"):
        for visits in ("2", "4", "8", "16"):
            found = [c["training"]["agreements"][visits][ranking] for c in cells.values()]
            over = sum(x["stated"] > x["another training"] + 0.05 for x in found)
            said = [np.mean([x[name] for x in found]) for name in names]
            known = ["" if np.isnan(x) else f"{x:.2f}" for x in said]
            rows.append(
                [ranking, visits, *known, "" if np.isnan(said[0]) else f"{over} of {len(found)}"]
            )
    head = ["ranking", "visits", *names, "stated too high"]
    return long_table("statements_trainings", "Another training", head, rows)


def _sources(cells: Cells) -> str:
    names = ("values hold", "shares hold", "one is named")
    found = [one for c in cells.values() for one in c["training"]["sources"]]
    rows = []
    for kind in found[0]:
        shares = [f"{np.mean([x[kind][name] for x in found]):.3f}" for name in names]
        rows.append([kind, f"{ASSIGNMENTS * len(found):,}", *shares])
    head = ["rows", "tables", *names]
    return long_table("statements_sources", "Equal sources", head, rows)


def _counts(flipped: Sequence[tuple[flips.Setting, dict[str, Any]]]) -> str:
    rows = []
    for shares in ("balanced", "mnist", "r8"):
        for kind in flips.KINDS:
            own = [r for s, r in flipped if (s.shares, s.flips) == (shares, kind)]
            for visits in ("4", "8", "16") if own else ():
                told = [r[visits] for r in own if r[visits]["told"]]
                would = [r[visits] for r in own]
                rows.append(
                    ["digits" if shares == "balanced" else shares, kind, visits,
                     f"{len(told)} of {len(own)}", _covered(told), _covered(would),
                     _error(told), f"{np.mean([r['separation'] for r in would]):.2f}"]
                )  # fmt: skip
    head = ["data", "wrong labels", "visits", "counted", "covered", "covered if all were counted",
            "count less truth", "mean separation"]  # fmt: skip
    return long_table("statements_counts", "Counts", head, rows)


def _confused(flipped: Sequence[tuple[flips.Setting, dict[str, Any]]]) -> str:
    """How many intervals of confused classes held."""
    said = []
    for visits in ("8", "16"):
        told = [r[visits] for s, r in flipped if s.flips == "confused" and r[visits]["told"]]
        held = sum(r["low"] <= r["wrong"] <= r["high"] for r in told)
        said.append(f"{held} of {len(told)} at {visits} visits")
    return f"Of confused classes {' and '.join(said)} intervals held; those counts were too high."


def _covered(found: Sequence[dict[str, Any]]) -> str:
    hits = [r["low"] <= r["wrong"] <= r["high"] for r in found]
    return f"{np.mean(hits):.2f}" if hits else ""


def _error(found: Sequence[dict[str, Any]]) -> str:
    away = [r["count"] - r["wrong"] for r in found]
    return f"{np.mean(away):+.1f} ± {np.std(away):.1f}" if away else ""


def _calibrated(flipped: Sequence[tuple[flips.Setting, dict[str, Any]]]) -> list[list[str]]:
    """Bounds of the probability, rows, what was said of them and what came."""
    told = [r[v] for _, r in flipped for v in ("8", "16") if r[v]["told"] and r[v]["low"] > 0]
    rows = []
    for k, (low, high) in enumerate(zip(flips.BINS, flips.BINS[1:], strict=False)):
        n, said, came = (sum(r[name][k] for r in told) for name in ("rows", "said", "came"))
        if n:
            bounds = f"{low:.1f} to {min(high, 1.0):.1f}"
            rows.append([bounds, str(n), f"{said / n:.3f}", f"{came / n:.3f}"])
    return rows


def _audits(audited: Sequence[tuple[audits.Setting, dict[str, Any]]]) -> str:
    rows = []
    for name in audits.CHANGES:
        own = [r for s, r in audited if s.audit == name]
        if own:
            named = Counter(cause for r in own for cause in r["named"])
            said = ", ".join(f"{cause} ({n})" for cause, n in named.most_common()) or "nothing"
            gains = [r["label gain"] for r in own if r["label gain"] is not None]
            rows.append([name.replace("-", " "), str(len(own)), said,
                         f"{np.mean(gains):.2f}" if gains else ""])  # fmt: skip
    head = ["made wrong", "audits", "named (in how many)", "label gain"]
    return long_table("statements_audits", "Causes", head, rows)
