"""`inrun.prune`: which samples to leave out, how sure each one's harm is, a file of the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from scipy.stats import t as student

from inrun.answers import Answer
from inrun.errors import MisuseError, StoreError
from inrun.uses._judges import judge_notes, judged_as, unjudged
from inrun.uses._ranking import FEWEST, PRIOR, RANKINGS, Ranked, ranking_named
from inrun.uses._samples import Valued, described, samples_of

AUTO, NAMED = "auto", "name"
FORMS = (".txt", ".jsonl", ".csv", ".parquet")


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
    """

    by: str
    balanced: str | None
    table: pa.Table
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """How many are left out, by what, how many may help in another training; what judges."""
        dropped, every = int(pc.sum(self.table["dropped"]).as_py() or 0), self.table.num_rows
        over = f", balanced over {self.balanced}" if self.balanced else ""
        said = [f"{dropped:,} of {every:,} samples to leave out, by {self.by}{over}."]
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
        t = student.isf(sure.to_numpy(), PRIOR + 1)
        return float(student.cdf(t / np.sqrt(2), PRIOR + 1).sum())


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

    A list, not yet a suggestion: whether training without them is better says
    `inrun.check_pruning`, by training again beside a random control.

    Args:
        run: a stored run, or a live attribution with a store.
        drop: a share of the visited samples as a float below 1, a number of them as an int, or the
            ids of those to leave out, such as a source's: then nothing is chosen, and balance is
            that of the random control.
        by: 'total' (default), 'normalised', or 'harm' (the worst-harmed target). Totals do badly
            at high shares where they are not balanced.
        balanced: a column of the samples every level of which loses the same share; 'auto' is the
            label, where samples have one that sorts them into groups; None balances over nothing.
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
    name = ranking_named(by or "total", run.targets)
    ranked = RANKINGS[name](run.visits(), run.targets)
    ids = pa.table({"sample_id": pa.array(ranked.ids.tolist())})
    table = described(ids, samples_of(run, samples))
    column = _labels_if_grouping(table) if balanced == AUTO else balanced
    level = _levels(table, column)
    nobody = unjudged(run, samples)
    if isinstance(drop, Collection):
        name, dropped = NAMED, _named(drop, ranked.ids.tolist())
    else:
        share = _count(drop, len(ranked.ids)) / len(ranked.ids)
        dropped = lowest(ranked.scores, level, share) & ~nobody
    ranked = replace(ranked, confidence=np.where(nobody, np.nan, ranked.confidence))
    if at_least is not None:
        dropped &= np.nan_to_num(ranked.confidence, nan=-1.0) >= at_least
    table = _table(run, ranked, dropped, level, column)
    return Pruning(name, column, table, tuple(judge_notes(run, samples)))


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


def lowest(scores: np.ndarray, level: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the given share of each level, its lowest scores."""
    dropped = np.zeros(len(scores), dtype=bool)
    for name in set(level.tolist()):
        rows = np.flatnonzero(level == name)
        order = rows[np.argsort(scores[rows], kind="stable")]
        dropped[order[: round(share * len(rows))]] = True
    return dropped


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


def check_place(path: Path) -> None:
    """Refuses a place before any work is done.

    Raises:
        MisuseError: the name says no form that is written here.
        StoreError: something is there already.
    """
    if path.suffix.lower() not in FORMS:
        raise MisuseError(f"{path} must end in one of {', '.join(FORMS)}, which says its form.")
    if path.exists():
        raise StoreError(f"{path} is there already. Name another file, or remove it first.")


def write_kept(
    path: Path,
    pruning_dropped: Sequence[Any],
    visited: Sequence[Any],
    samples: Any,
    lines: Path | None = None,
) -> int:
    """Writes every sample that is not dropped; those that were never visited are kept too.

    Args:
        path: .txt for ids, .jsonl, .csv or .parquet for rows.
        pruning_dropped: ids to leave out.
        visited: ids of all visited samples.
        samples: the rows; None writes ids alone.
        lines: the .jsonl file that the samples were read from, row by row: its lines are then
            copied as they stand.

    Returns:
        How many were written.

    Raises:
        StoreError: the place is taken or cannot be written.
    """
    check_place(path)
    rows = samples if samples is not None else pa.table({"sample_id": pa.array(list(visited))})
    gone = pa.array(list(pruning_dropped), type=rows["sample_id"].type)
    keep = pc.invert(pc.is_in(rows["sample_id"], value_set=gone))
    beside = path.with_name(path.name + ".partial")
    try:
        if lines is not None and path.suffix == ".jsonl":
            _copy_lines(lines, beside, keep.to_pylist())
        else:
            _write(beside, path.suffix.lower(), rows.filter(keep))
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(f"{path} could not be written: {error}") from error
    return int(pc.sum(keep).as_py())


def _copy_lines(source: Path, to: Path, keep: list[bool]) -> None:
    with (
        open(source, encoding="utf-8", newline="") as read,
        open(to, "w", encoding="utf-8", newline="") as write,
    ):
        filled = (line for line in read if line.strip())
        for line, stays in zip(filled, keep, strict=True):
            if stays:
                write.write(line if line.endswith("\n") else line + "\n")


def _write(path: Path, form: str, rows: pa.Table) -> None:
    if form == ".parquet":
        pq.write_table(rows, path)
        return
    plain = rows.drop_columns(["image"]) if "image" in rows.column_names else rows
    if form == ".csv":
        pyarrow.csv.write_csv(plain, path)
        return
    with open(path, "w", encoding="utf-8") as file:
        for row in plain.to_pylist():
            text = str(row["sample_id"]) if form == ".txt" else json.dumps(row, default=str)
            file.write(text + "\n")
