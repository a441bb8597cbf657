"""`inrun.prune`: which samples to leave out, and how sure each one's harm is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from inrun.answers import Answer
from inrun.errors import MisuseError, require_one_of
from inrun.uses._judges import judge_notes, judged_as, unjudged
from inrun.uses._ranking import FEWEST, PRIOR, RANKINGS, Ranked, ranking_named
from inrun.uses._samples import Valued, described, samples_of

AUTO, NAMED = "auto", "name"
DOUBT, RANK = "label_doubt", "doubt_rank"  # a ranking, and the column that it reads
SURE = 0.95  # the confidence from which a sample is called surely harmful


@dataclass(frozen=True, repr=False)
class Pruning(Answer):
    """What `inrun.prune` returns.

    Attributes:
        by: the ranking's name; 'name' where the samples to leave out were named.
        balanced: the column whose levels lose the same share each, or None.
        table: one row per visited sample, the most harmful first: `sample_id`, `score` (low for
            harm), `confidence` that it is harmful (null below eight visits, and where no validation
            row has the sample's label), `dropped`, `value`, `value_normalised`, `visits`, with
            several targets `worst_target`, and with `balanced` the `level`.
        notes: what judges, in sentences.
        asked: how many were asked for; fewer are dropped where fewer are harmful.
    """

    by: str
    balanced: str | None
    table: pa.Table
    notes: tuple[str, ...] = ()
    asked: int = 0

    def sentences(self) -> list[str]:
        """How many are left out, by what, how many may help in another training; what judges."""
        dropped, every = int(pc.sum(self.table["dropped"]).as_py() or 0), self.table.num_rows
        over = f", balanced over {self.balanced}" if self.balanced else ""
        short = f"; {self.asked:,} were asked for" if dropped < self.asked else ""
        said = [f"{dropped:,} of {every:,} samples to leave out, by {self.by}{over}{short}."]
        if self.by == DOUBT:
            said.append(
                "A doubt is a rank: how many of these labels are wrong says inrun.wrong_labels."
            )
        if self.positive_again is not None and dropped:
            sure = self.table.filter(self.table["dropped"])["confidence"].to_numpy()
            said.append(f"{int((sure >= SURE).sum()):,} of them are surely harmful ({SURE:.0%}).")
        if self.positive_again is None:
            said.append(f"With fewer than {FEWEST} visits there is no confidence in a single one.")
        elif dropped:
            said.append(
                "In another training of the same data, expect about "
                f"{self.positive_again:.0f} of them to have a positive value."
            )
        said += self.notes
        return said

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
    def positive_again(self) -> float | None:
        """How many of the dropped to expect with a positive value in another training.

        A sample of confidence c has t = isf(c); another training's mean differs from this one's by
        the errors of both, so that it is positive with the probability cdf(t / sqrt(2)).
        """
        sure = self.table.filter(self.table["dropped"])["confidence"]
        if sure.null_count:
            return None
        t = scipy.stats.t.isf(sure.to_numpy(), PRIOR + 1)
        return float(scipy.stats.t.cdf(t / np.sqrt(2), PRIOR + 1).sum())


def prune(
    run: Valued,
    drop: float | int | Collection[Any] = 0.1,
    *,
    by: str | None = None,
    balanced: str | None = AUTO,
    at_least: float | None = None,
    samples: Any = None,
    judge: str | None = None,
) -> Pruning:
    """Chooses the most harmful samples to leave out.

    Samples that helped are never dropped: where fewer harmed than were asked for, fewer are.

    A list, not yet a suggestion: whether training without them is better says
    `inrun.check_pruning`, by training again beside a random control.

    Args:
        run: a stored run, or a live attribution with a store.
        drop: a share of the visited samples as a float below 1, a number of them as an int, or the
            ids of those to leave out, such as a source's: then nothing is chosen, and balance is
            that of the random control.
        by: 'total' (default), 'normalised', 'harm' (the worst-harmed target), 'gradient' (values
            over the size of the sample's own gradient, where that was kept), or 'label_doubt' of
            the samples, as a run of `inrun train` has them. Totals that are not balanced can empty
            a class at high shares.
        balanced: a column of the samples every level of which loses the same share; 'auto' is the
            label, where samples have one that sorts them into groups, and nothing by label_doubt;
            None balances over nothing.
        at_least: leave out no sample whose confidence is lower.
        samples: what the samples are, if the run was not told (`Run.describe`).
        judge: 'training' weighs each class by its share of the samples, 'even' all alike; None
            leaves the weights that the run was scored with.

    Raises:
        MisuseError: nothing or everything would be left out, a name that is not one, or an id that
            was not visited.
        StoreError: the run holds no visits.
    """
    run = judged_as(run, judge, samples)
    doubted = by == DOUBT
    if by is not None:
        require_one_of("by", by, sorted([DOUBT, *RANKINGS]))
    name = DOUBT if doubted else ranking_named(by or "total", run.targets)
    ranked = RANKINGS["total" if doubted else name](run.visits(), run.targets)
    n = len(ranked.ids)
    count = len(set(drop)) if isinstance(drop, Collection) else _count(drop, n)
    ids = pa.table({"sample_id": pa.array(ranked.ids.tolist())})
    table = described(ids, samples_of(run, samples))
    if doubted:
        ranked = replace(ranked, scores=_doubts(table))
    grouping = None if doubted else _labels_if_grouping(table)
    column = grouping if balanced == AUTO else balanced
    level = _levels(table, column)
    nobody = unjudged(run, samples)
    if isinstance(drop, Collection):
        name, dropped = NAMED, _named(drop, ranked.ids.tolist())
    else:
        lost = lowest(ranked.scores, level, lambda rows: round(count / n * len(rows)))
        dropped = lost & (ranked.scores < 0) & ~nobody
    ranked = replace(ranked, confidence=np.where(nobody, np.nan, ranked.confidence))
    if at_least is not None:
        dropped &= np.nan_to_num(ranked.confidence, nan=-1.0) >= at_least
    table = _table(run, ranked, dropped, level, column)
    return Pruning(name, column, table, tuple(judge_notes(run, samples)), count)


def _doubts(table: pa.Table) -> np.ndarray:
    """(n,) the rank of each sample's doubt less one more than there are; 0 where there is none."""
    if RANK not in table.column_names:
        raise MisuseError(
            f"The samples have no column {RANK!r}. A run of `inrun train` on labels has it; for "
            "your own loop put that of inrun.label_doubts into Run.describe."
        )
    above: np.ndarray = pc.subtract(table[RANK], table.num_rows + 1).fill_null(0).to_numpy()
    return above.astype(float)


def _named(drop: Collection[Any], ids: list[Any]) -> np.ndarray:
    """(n,) bool: which of the ids are named."""
    named = set(drop)
    strangers = sorted(map(repr, named.difference(ids)))
    if strangers:
        raise MisuseError(
            f"{len(strangers)} of the ids to leave out are of no sample of the run, such as "
            f"{strangers[0]}. Name visited samples, by ids of the run's own type."
        )
    _count(len(named), len(ids))
    return np.array([i in named for i in ids])


def _count(drop: float | int, n: int) -> int:
    count = round(drop * n) if isinstance(drop, float) else drop
    if not 0 < count < n:
        raise MisuseError(
            f"drop={drop} would leave out {count} of {n} samples. Pass a share between 0 and 1, or "
            "a number of samples that leaves some."
        )
    return count


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


def lowest(scores: np.ndarray, level: np.ndarray, count: Callable[[np.ndarray], int]) -> np.ndarray:
    """(n,) bool: of each level its lowest scores, as many as `count` says of its rows."""
    found = np.zeros(len(scores), dtype=bool)
    for name in set(level.tolist()):
        rows = np.flatnonzero(level == name)
        found[rows[np.argsort(scores[rows], kind="stable")][: count(rows)]] = True
    return found


def _table(
    run: Valued, ranked: Ranked, dropped: np.ndarray, level: np.ndarray, balanced: str | None
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
