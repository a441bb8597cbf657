"""Tables of halves of the validation rows, and of counts with light and heavy tails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.markdown import long_table
from benchmarks.statements import halves, tails

Halved = Sequence[tuple[halves.Setting, dict[str, Any]]]
OVER = 0.05  # by so much a statement is too high
VISITS = tuple(map(str, halves.VISITS))


def _each(halved: Halved, visits: str, ranking: str) -> list[dict[str, float]]:
    """Means over the trainings and sets of each draw."""
    found = []
    for _, result in halved:
        rows = result[visits][ranking]
        found.append({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
    return found


def _row(found: Sequence[dict[str, float]], names: Iterable[str]) -> list[str]:
    told = [f"{np.mean([x[n] for x in found]):.2f} ± {np.std([x[n] for x in found]):.2f}"
            for n in names]  # fmt: skip
    over = sum(x["halves"] > x["other"] + OVER for x in found)
    return [*told, f"{over} of {len(found)}"]


def halved_rows(halved: Halved) -> str:
    """Of totals and normalised values, for the table of claims."""
    lines = []
    for ranking in halves.RANKINGS:
        each = [_each(halved, visits, ranking) for visits in ("4", "16")]
        stated, other = (
            ", ".join(f"{np.mean([x[name] for x in found]):.2f}" for found in each)
            for name in ("halves", "other")
        )
        over = (str(sum(x["halves"] > x["other"] + OVER for x in found)) for found in each)
        lines.append(
            f"| R with other validation rows, {ranking}, 4 and 16 visits | {stated} "
            f"| {other}; too high in {', '.join(over)} of {len(halved)} |"
        )
    return "\n" + "\n".join(lines)


def halved_table(halved: Halved) -> str:
    """By data, ranking and visits."""
    names, rows = ("halves", "other", "halves within", "other within"), []
    for kind in dict.fromkeys((s.halves, s.noise) for s, _ in halved):
        own = [(s, r) for s, r in halved if (s.halves, s.noise) == kind]
        for ranking in halves.RANKINGS:
            for visits in VISITS:
                told = _row(_each(own, visits, ranking), names)
                rows.append([f"{kind[0]}, {kind[1]:.0%} wrong", ranking, visits, *told])
    head = ["data", "ranking", "visits", "one half with the other", "with a second set",
            "halves within labels", "second set within labels", "stated too high"]  # fmt: skip
    return long_table("statements_validation", "Another validation set", head, rows)


def tails_told(simulated: Sequence[tuple[tails.Setting, dict[str, Any]]]) -> str:
    """How many intervals held below `CLEAR` and above, of counts that are given of none wrong."""
    (found,) = (r for s, r in simulated if (s.tails, s.noise) == ("t3", 0.0))
    below, above = (found[f"{low:g}"] for low in tails.SEPARATIONS[2:])
    held = [f"{cell['held']} of {cell['counts']}" for cell in (below, above)]
    return f"of none wrong {held[0]} intervals held below it, and {held[1]} above."


def tails_table(simulated: Sequence[tuple[tails.Setting, dict[str, Any]]]) -> str:
    """By tails, share of wrong labels and stated separation: counts, coverage, errors."""
    rows = []
    for setting, result in simulated:
        bounds = [*tails.SEPARATIONS[1:], 1.0]
        for (low, cell), high in zip(result.items(), bounds, strict=True):
            if cell["counts"]:
                held, error = (cell[name] / cell["counts"] for name in ("held", "error"))
                rows.append([setting.tails, f"{setting.noise:.0%}", f"{low} to {high:g}",
                             str(cell["counts"]), f"{held:.2f}", f"{error:+.1f}"])  # fmt: skip
    head = ["tails", "wrong labels", "separation", "counts", "held", "count less truth"]
    return long_table("statements_tails", "Tails", head, rows)
