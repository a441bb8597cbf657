"""`inrun.prune`: which samples to leave out, and how sure each one's harm is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import MisuseError
from inrun.ledger import Run
from inrun.uses._join import described
from inrun.uses._ranking import RANKINGS, Ranked, ranking_named

AUTO = "auto"


@dataclass(frozen=True)
class Pruning:
    """What `inrun.prune` returns.

    Attributes:
        by: the ranking's name.
        balanced: the column whose levels lose the same share each, or None.
        table: a row a visited sample, the most harmful first: `sample_id`, `score` (low for harm),
            `confidence` that it is harmful (null where no sample has two visits), `dropped`,
            `value`, `value_normalised`, `visits`, with several targets `worst_target`, and with
            `balanced` the `level`.
    """

    by: str
    balanced: str | None
    table: pa.Table

    @property
    def dropped(self) -> list[Any]:
        """Ids to leave out, the most harmful first."""
        ids: list[Any] = self.table.filter(self.table["dropped"])["sample_id"].to_pylist()
        return ids

    @property
    def kept(self) -> list[Any]:
        """Ids that stay, in the order of ids."""
        left = self.table.filter(pc.invert(self.table["dropped"]))["sample_id"]
        ids: list[Any] = left.sort().to_pylist() if len(left) else []
        return ids

    @property
    def perhaps_harmless(self) -> float | None:
        """How many of the dropped are expected to be harmless, by their confidence."""
        sure = self.table.filter(self.table["dropped"])["confidence"]
        return float(sum(1 - c for c in sure.to_pylist())) if not sure.null_count else None


def prune(
    run: Run,
    drop: float | int = 0.1,
    *,
    by: str | None = None,
    balanced: str | None = AUTO,
    at_least: float | None = None,
    samples: pa.Table | None = None,
) -> Pruning:
    """Chooses the most harmful samples to leave out.

    A list, not yet a suggestion: whether training without them is better says
    `inrun.check_pruning`, by training again beside a random control.

    Args:
        run: a stored run.
        drop: a share of the visited samples as a float below 1, or a number of them as an int.
        by: 'total' (default), 'normalised', or 'harm' (the worst-harmed target). Totals do badly
            at high shares where they are not balanced.
        balanced: a column of the samples every level of which loses the same share; 'auto' is the
            label, where samples have one that sorts them into groups; None balances over nothing.
        at_least: leave out no sample whose confidence is lower.
        samples: what the samples are, if the run was not told (`Run.describe`).

    Raises:
        MisuseError: nothing or everything would be left out, or a name that is not one.
        StoreError: the run holds no visits.
    """
    name = ranking_named(by or "total", run.targets)
    ranked = RANKINGS[name](run.visits(), run.targets)
    n = len(ranked.ids)
    count = _count(drop, n)
    table = _described(run, ranked, samples)
    column = _labels_if_grouping(table) if balanced == AUTO else balanced
    level = _levels(table, column)
    dropped = lowest(ranked.scores, level, count / n)
    if at_least is not None:
        dropped &= np.nan_to_num(ranked.confidence, nan=-1.0) >= at_least
    return Pruning(name, column, _table(run, ranked, dropped, level, column))


def _count(drop: float | int, n: int) -> int:
    count = round(drop * n) if isinstance(drop, float) else drop
    if not 0 < count < n:
        raise MisuseError(
            f"drop={drop} would leave out {count} of {n} samples. Pass a share between 0 and 1, or "
            "a number of samples that leaves some."
        )
    return count


def _described(run: Run, ranked: Ranked, samples: pa.Table | None) -> pa.Table:
    ids = pa.table({"sample_id": pa.array(ranked.ids.tolist())})
    return described(ids, run.samples() if samples is None else samples)


def _labels_if_grouping(table: pa.Table) -> str | None:
    """The label's column, where it has fewer levels than there are pairs of samples."""
    if "label" not in table.column_names:
        return None
    levels = len(pc.unique(table["label"]))
    return "label" if 1 < levels <= table.num_rows // 2 else None


def _levels(table: pa.Table, column: str | None) -> np.ndarray:
    """(n,) each sample's level of the column; all the same without one."""
    if column is None:
        return np.zeros(table.num_rows, dtype=object)
    if column not in table.column_names[1:]:
        have = ", ".join(table.column_names[1:]) or "nothing"
        raise MisuseError(
            f"The samples have no column {column!r} to balance over: there is {have}. Pass "
            "--samples FILE with that column, or tell the run with Run.describe."
        )
    return np.array([str(value) for value in table[column].to_pylist()], dtype=object)


def lowest(scores: np.ndarray, level: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the given share of each level, its lowest scores."""
    dropped = np.zeros(len(scores), dtype=bool)
    for name in set(level.tolist()):
        rows = np.flatnonzero(level == name)
        order = rows[np.argsort(scores[rows], kind="stable")]
        dropped[order[: round(share * len(rows))]] = True
    return dropped


def _table(
    run: Run, ranked: Ranked, dropped: np.ndarray, level: np.ndarray, balanced: str | None
) -> pa.Table:
    values = run.values()
    sure = pa.array(ranked.confidence, mask=np.isnan(ranked.confidence))
    columns: dict[str, Any] = {
        "sample_id": values["sample_id"],
        "score": pa.array(ranked.scores),
        "confidence": sure,
        "dropped": pa.array(dropped),
        "value": values["value"],
        "value_normalised": values["value_normalised"],
        "visits": values["visits"],
    }
    if ranked.worst is not None:
        columns["worst_target"] = pa.array([run.targets[k] for k in ranked.worst])
    if balanced is not None:
        columns["level"] = pa.array(level.tolist())
    return pa.table(columns).sort_by("score")
