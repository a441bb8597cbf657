"""What a run's page carries: one JSON value, a list a column, samples in the order of ids.

The page's script filters, sorts and sums it; it is compressed into the page. Ids are text, because
a browser's numbers end at 2^53, and numbers have six digits. Letters: n samples, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import MisuseError
from inrun.ledger import Run, target_columns
from inrun.report import _shown as shown
from inrun.report._places import KINDS, sample_map, value_map
from inrun.uses import (
    Ranked,
    WrongLabels,
    described,
    duplicate_groups,
    harm_sums,
    near_groups,
    outliers,
    rank,
    unjudged,
    visited,
    wrong_labels,
)

MOST_VISITS = 500_000
MOST_HARMS = 3_000_000
MOST_LEVELS = 1000
PLAIN = ("sample_id", "text", "image", "embedding")


@dataclass(frozen=True)
class Contents:
    """A run's tables joined, and what is derived from them; all (n,) in the order of ids."""

    run: Run
    values: pa.Table
    visits: pa.Table
    table: pa.Table  # the samples' description
    ranked: Ranked
    copies: np.ndarray
    near: np.ndarray
    outlier: np.ndarray
    wrong: WrongLabels | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets with a column of their own."""
        return target_columns(self.run.targets)


def contents(run: Run, samples: pa.Table | None) -> Contents:
    """Reads and joins everything that a report is made of."""
    visits, values = run.visits(), run.values()
    table = described(values, run.samples() if samples is None else samples)
    ranked, nobody = rank(visits, run.targets), unjudged(run, table)
    ranked = replace(ranked, confidence=np.where(nobody, np.nan, ranked.confidence))
    return Contents(
        run, values, visits, table, ranked,
        duplicate_groups(table), near_groups(table),
        outliers(values["value"].to_numpy()), _counted(run, table),
    )  # fmt: skip


def _counted(run: Run, table: pa.Table) -> WrongLabels | None:
    """Labels that are wrong, where the samples' column `planted` says which were flipped."""
    if "planted" not in table.column_names:
        return None
    planted = pc.equal(table["planted"].cast(pa.string()), "true")
    try:
        return wrong_labels(run, table["sample_id"].filter(planted).to_pylist())
    except MisuseError:  # too few of them, or nothing is known of losses and probabilities
        return None


def payload(of: Contents) -> dict[str, Any]:
    """The page's data."""
    n = of.values.num_rows
    scores = [of.values[c].to_numpy() for c in ("value", "value_normalised")] + [of.ranked.scores]
    order = shown.priority(scores)
    data: dict[str, Any] = {
        "ids": [str(i) for i in of.values["sample_id"].to_pylist()],
        "value": numbers(scores[0]),
        "normalised": numbers(scores[1]),
        "visits": of.values["visits"].to_pylist(),
        "first": of.values["first_step"].to_pylist(),
        "last": of.values["last_step"].to_pylist(),
        "confidence": [None if np.isnan(c) else round(c, 4) for c in of.ranked.confidence.tolist()],
        "outlier": of.outlier.astype(int).tolist(),
        "copies": of.copies.tolist(),
        "near": of.near.tolist(),
        "targets": list(of.targets),
        "left_out": [],
    }
    data |= _placed(of)
    if of.wrong is not None and of.wrong.count is not None:
        known = of.wrong.table
        place = pc.index_in(of.values["sample_id"], value_set=known["sample_id"].combine_chunks())
        data["wrong"] = known["probability"].take(place).to_pylist()
        data["suspect"] = pc.less(place, round(of.wrong.count)).fill_null(False).to_pylist()
    if of.ranked.worst is not None:
        data |= {"harm": numbers(of.ranked.scores), "worst": of.ranked.worst.tolist()}
        if n * len(of.targets) <= MOST_HARMS:
            data["harms"] = [numbers(h) for h in harm_sums(of.visits, of.targets)[1].T]
    data["groups"] = [_levels(name, column) for name, column in grouping_columns(of.table)]
    data |= _seen(of, order, data["left_out"])
    return data | {"by_visit": _by_visit(of, order, data["left_out"])}


def _placed(of: Contents) -> dict[str, Any]:
    """Coordinates on the maps, and each sample's kind by its visits."""
    values = value_map(of.visits)
    kind = values.pop("kind")
    maps = {"worth": values, "map": sample_map(of.table, of.visits, of.targets)}
    found = {
        name: place | {axis: numbers(place[axis]) for axis in "xy"}
        for name, place in maps.items() if place
    }  # fmt: skip
    return {"places": found, "kind": kind.tolist(), "kinds": list(KINDS)}


def numbers(values: np.ndarray) -> list[float]:
    """Six digits each: what a page shows, at half the size."""
    return [float(f"{v:.6g}") for v in values.tolist()]


def grouping_columns(table: pa.Table) -> list[tuple[str, list[str]]]:
    """Columns that sort samples into a few groups, label and source first."""
    found = []
    names = sorted(table.column_names, key=lambda name: (name not in ("label", "source"), name))
    for name in names:
        kind = table[name].type
        discrete = (
            pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        )
        if name in (*PLAIN, "suggested_label") or not discrete:
            continue
        cells = ["(none)" if v is None else str(v) for v in table[name].to_pylist()]
        levels = len(set(cells))
        if 1 < levels <= MOST_LEVELS and 2 * levels <= len(cells):
            found.append((name, cells))
    return found


def _levels(name: str, cells: Sequence[str]) -> dict[str, Any]:
    plain = all(c.lstrip("-").isdigit() or c == "(none)" for c in set(cells))
    levels = sorted(set(cells), key=(lambda c: (c == "(none)", int(c) if c != "(none)" else 0))
                    if plain else str)  # fmt: skip
    number = {level: k for k, level in enumerate(levels)}
    return {"name": name, "levels": levels, "codes": [number[c] for c in cells]}


def _seen(of: Contents, order: np.ndarray, left_out: list[str]) -> dict[str, Any]:
    """Texts, images, other columns and tokens."""
    table = of.table
    found: dict[str, Any] = {}
    if "text" in table.column_names:
        found["text"], limit = shown.texts(table["text"], order)
        if limit:
            left_out.append(
                f"Texts are cut after {limit} characters, those of the most extreme samples after "
                f"{shown.LONGEST}: searching finds what is here."
            )
    if "image" in table.column_names:
        found["image"], cut = shown.images(table["image"], order)
        if cut:
            left_out.append("Not all images fit; the most extreme samples' are all here.")
    rest = [c for c in table.column_names if c not in PLAIN]
    found["columns"] = {name: shown.cells(table[name]) for name in rest[:30]}
    if len(rest) > 30:
        left_out.append(f"Of {len(rest)} columns 30 are here.")
    found["tokens"] = shown.tokens(of.run, of.values["sample_id"], order)
    return found


def _by_visit(of: Contents, order: np.ndarray, left_out: list[str]) -> dict[str, Any]:
    """Row, step and value of visits: all, or all visits of as many samples as fit."""
    ids, row = visited(of.visits)
    complete = len(row) <= MOST_VISITS
    keep = np.ones(len(row), dtype=bool)
    if not complete:
        taken = np.zeros(len(ids), dtype=bool)
        count = of.values["visits"].to_numpy()
        taken[order[: int(np.searchsorted(np.cumsum(count[order]), MOST_VISITS))]] = True
        keep = taken[row]
        left_out.append(
            f"Single visits are here of {int(taken.sum()):,} of the {len(ids):,} samples: the most "
            "extreme ones and a random part of the others. Sums and tables are of all."
        )
    return {
        "complete": complete,
        "row": row[keep].tolist(),
        "step": of.visits["step"].to_numpy()[keep].tolist(),
        "value": numbers(of.visits["value"].to_numpy()[keep]),
    }
