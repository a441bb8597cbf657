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
    balanced: str | None = None,
    at_least: float | None = None,
    samples: pa.Table | None = None,
) -> Pruning:
    """Chooses the most harmful samples to leave out.

    A list, not yet a suggestion: whether training without them is better says
    `inrun.check_pruning`, by training again beside a random control.

    Args:
        run: a stored run.
        drop: a share of the visited samples as a float below 1, or a number of them as an int.
        by: 'harm' (the worst-harmed target; default where there are several), 'normalised' (else)
            or 'total'. Raw totals favour what came early and do badly at high shares.
        balanced: a column of the samples, such as label: every level of it loses the same share.
        at_least: leave out no sample whose confidence is lower.
        samples: what the samples are, if the run was not told (`Run.describe`).

    Raises:
        MisuseError: nothing or everything would be left out, or a name that is not one.
        StoreError: the run holds no visits.
    """
    name = ranking_named(by, run.targets)
    ranked = RANKINGS[name](run.visits(), run.targets)
    n = len(ranked.ids)
    count = _count(drop, n)
    level = _levels(run, ranked, balanced, samples)
    dropped = _lowest(ranked.scores, level, count / n)
    if at_least is not None:
        dropped &= np.nan_to_num(ranked.confidence, nan=-1.0) >= at_least
    return Pruning(name, balanced, _table(run, ranked, dropped, level, balanced))


def _count(drop: float | int, n: int) -> int:
    count = round(drop * n) if isinstance(drop, float) else drop
    if not 0 < count < n:
        raise MisuseError(
            f"drop={drop} would leave out {count} of {n} samples. Pass a share between 0 and 1, or "
            "a number of samples that leaves some."
        )
    return count


def _levels(run: Run, ranked: Ranked, balanced: str | None, samples: pa.Table | None) -> np.ndarray:
    if balanced is None:
        return np.zeros(len(ranked.ids), dtype=object)
    samples = run.samples() if samples is None else samples
    if samples is None or balanced not in samples.column_names:
        have = "nothing" if samples is None else ", ".join(samples.column_names)
        raise MisuseError(
            f"The samples have no column {balanced!r} to balance over: there is {have}. Pass "
            "--samples FILE with that column, or tell the run with Run.describe."
        )
    ids = pa.array(ranked.ids.tolist())
    column = described(pa.table({"sample_id": ids}), samples)[balanced].to_pylist()
    return np.array([str(value) for value in column], dtype=object)


def _lowest(scores: np.ndarray, level: np.ndarray, share: float) -> np.ndarray:
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
