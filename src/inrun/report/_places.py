"""Where samples stand: a map of what they do, and a map of their mean value against its spread.

The map places a sample by the first two principal components of its embedding, where the run was
told of one (a column `embedding`, a list of numbers), else of its normalised values for the
targets; two targets are the two axes themselves.

The value map has the mean of a sample's normalised values over its visits, and their standard
deviation. A sample is

    finished    the mean size of its late half of visits is below `DONE` of the median sample's
    erratic     else, |mean| is below half of the spread: it helps in one visit and harms in another
    helpful     else, by the sign of its mean; or harmful

Letters: n samples, D numbers of an embedding, K targets.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.ledger import target_columns
from inrun.uses import harm_sums, visit_places, visited

KINDS = ("helpful", "harmful", "erratic", "finished")
HELPFUL, HARMFUL, ERRATIC, FINISHED = range(4)
DONE = 0.25


def value_map(visits: pa.Table) -> dict[str, Any]:
    """Mean, spread and kind of every sample, in the order of ids; kind -1 with a single visit."""
    row = visited(visits)[1]
    x = visits["value_normalised"].to_numpy()
    mean, spread, late, count = moments(x, row)
    typical = np.median(np.bincount(row, np.abs(x)) / count)
    kind = np.where(mean < 0, HARMFUL, HELPFUL)
    kind = np.where(np.abs(mean) < spread / 2, ERRATIC, kind)
    kind = np.where(late < DONE * typical, FINISHED, kind)
    return {
        "x": mean, "y": spread, "kind": np.where(count > 1, kind, -1),
        "titles": ["mean normalised value over visits", "spread (standard deviation)"],
    }  # fmt: skip


def moments(x: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, ...]:
    """By sample: mean, standard deviation, mean size of the late half, number of visits.

    `row` is each visit's sample, 0 to n - 1, in the order of steps.
    """
    place, count = visit_places(row, int(row.max()) + 1)
    mean = np.bincount(row, x) / count
    spread = np.sqrt(np.bincount(row, (x - mean[row]) ** 2) / np.maximum(count - 1, 1))
    in_late = 2 * place >= count[row]
    size = np.bincount(row, np.abs(x) * in_late) / np.maximum(np.bincount(row, in_late), 1)
    return mean, spread, size, count


def sample_map(table: pa.Table, visits: pa.Table, targets: tuple[str, ...]) -> dict[str, Any]:
    """Coordinates of every sample by what it is or does; empty where there is nothing to go by."""
    found = _embedding(table)
    if found is not None:
        xy, known = components(found)
        names = [f"component {k + 1} of the embedding" for k in (0, 1)]
    elif len(target_columns(targets)) > 1:
        sums_nK = harm_sums(visits, targets)[1]
        xy, known = components(sums_nK) if len(targets) > 2 else (sums_nK, 1.0)
        names = [f"component {k + 1} of the values for the targets" for k in (0, 1)]
        if len(targets) == 2:
            names = [f"normalised value for {target}" for target in targets]
    else:
        return {}
    return {"x": xy[:, 0], "y": xy[:, 1], "titles": names, "shown": round(known, 3)}


def components(rows_nD: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components, (n, 2), and their share of the variance."""
    centred = rows_nD - rows_nD.mean(0)
    sizes, axes = np.linalg.eigh(centred.T @ centred)
    axes = np.pad(axes, ((0, 0), (max(0, 2 - len(sizes)), 0)))
    share = float(sizes[-2:].sum() / sizes.sum()) if sizes.sum() > 0 else 0.0
    return centred @ axes[:, [-1, -2]], share


def _embedding(table: pa.Table) -> np.ndarray | None:
    if "embedding" not in table.column_names:
        return None
    cells = table["embedding"].to_pylist()
    try:  # lists are kept as text
        rows = [json.loads(cell) if isinstance(cell, str) else cell for cell in cells]
        found = np.array(rows, dtype=np.float64)
    except (ValueError, TypeError):  # a row without one, or of another length
        return None
    return found if found.ndim == 2 and found.size and np.isfinite(found).all() else None
