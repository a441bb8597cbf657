"""What each provider's, domain's or class's data was worth: sums that add up to the books.

Over the scored steps,

    fall of the validation loss
        = sum over groups + momentum + weight decay + unattributed + other + residual

so a group's share of the samples' entry is exact, and momentum, which belongs to no group, stands
apart. Equal contents delivered by several groups are one thing that was bought twice: with
`duplicates="split"` their joint value is divided equally among the groups that delivered them,
however often each did; with "booked" every copy keeps what its own visits earned, which depends on
which copy came first.

Intervals and what stands out: `_groups.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import InvariantError, MisuseError, require_one_of
from inrun.ledger import totals
from inrun.uses._groups import clusters_of, doubted_by_group, intervals, look_at_labels
from inrun.uses._judges import judge_notes, judged_as
from inrun.uses._samples import Valued, described, duplicate_groups, samples_of

UNNAMED = "(not described)"
ENTRIES = ("samples", "momentum", "weight_decay", "unattributed", "other", "residual")


@dataclass(frozen=True, repr=False)
class Rollup(Answer):
    """What `inrun.rollup` returns.

    Attributes:
        by: the column that was summed over.
        table: one row per group, the most valuable first: `group`, `samples`, `visits`, `value`,
            `low` and `high` (95 % intervals that hold for all groups together), `share` of the
            samples' entry with `share_low` and `share_high`, `share_of_fall` of the loss's whole
            fall, `booked` (the sum before duplicates were split), `harmful` (share of its samples
            with a negative value), `duplicated` (samples whose content another group delivered
            too), `told` ('above' or 'below' where its mean is told from the mean of all samples),
            `doubtful` (share of its samples among the tenth with the most doubtful labels; null
            where labels were not ranked) and `doubted` (whether that is more than chance).
        books: the entries over the run, in units of the validation loss: `fall`, `samples`,
            `momentum`, `weight_decay`, `unattributed`, `other`, `residual`.
        duplicates: 'split' or 'booked'.
        judges: what judges, in sentences.
    """

    by: str
    table: pa.Table
    books: dict[str, float]
    duplicates: str
    judges: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """The fall of the loss, and the entries that make it up."""
        entries = ", ".join(f"{name.replace('_', ' ')} {self.booked(name)}" for name in ENTRIES)
        fell = f"The validation loss fell by {self.booked('fall')}: {entries}."
        return [fell, self.comparison, *self.doubts, *self.judges]

    @property
    def comparison(self) -> str:
        """Which groups are told from the mean of all samples, in a sentence."""
        told = self.table.select(["group", "told"]).to_pylist()
        if len(told) < 2:
            return "There is one group, so nothing is compared."
        found = [
            f"{side} it: {', '.join(str(row['group']) for row in told if row['told'] == side)}"
            for side in ("above", "below")
            if any(row["told"] == side for row in told)
        ]
        said = "; ".join(found) or "none is told from it"
        return (
            f"{len(told)} groups beside the mean of all samples: {said}. By chance alone some "
            "group would be named in one of twenty such tables."
        )

    @property
    def doubts(self) -> list[str]:
        """Groups whose labels are more doubtful than chance would have them, in a sentence each."""
        return [
            look_at_labels(row["group"], row["doubtful"])
            for row in self.table.to_pylist()
            if row["doubted"]
        ]

    def booked(self, name: str) -> str:
        """An entry, or `fall`, as it is shown; the residual may not be known."""
        number = self.books[name]
        return f"{number:+.4g}" if np.isfinite(number) else "not known"

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers, in sentences."""
        copies = sum(self.table["duplicated"].to_pylist())
        said = [
            *self.judges,
            self.comparison,
            *self.doubts,
            "Positive: the group's samples lowered the validation loss. Shares are of the samples' "
            f"entry in the books, {self.booked('samples')}; what the loss fell by over the scored "
            f"steps: {self.booked('fall')}.",
            "The other entries belong to no group: momentum is what earlier gradients of all "
            "groups still did.",
            "An interval says how far a sum would move had the group delivered other rows like "
            "its own, not how far another training would move it. The intervals hold for all "
            "groups together.",
        ]
        if copies:
            how = (
                "their value is divided equally among the groups that delivered them"
                if self.duplicates == "split"
                else "each copy keeps what its own visits earned, which favours whoever came first"
            )
            said.append(f"{copies} samples were delivered by more than one group: {how}.")
        return said


def rollup(
    run: Valued,
    by: str = "source",
    *,
    samples: Any = None,
    duplicates: str = "split",
    judge: str | None = None,
    clusters: str | None = None,
) -> Rollup:
    """Sums values by a column of the samples.

    Args:
        run: a stored run, or a live attribution.
        by: a column of the samples: source, label, domain.
        samples: what the samples are, if the run was not told (`Run.describe`).
        duplicates: 'split' or 'booked', for equal contents from several groups.
        judge: 'training' weighs each class by its share of the samples, 'even' all alike; None
            leaves the weights that the run was scored with.
        clusters: a column of the samples; those of one level (a document, a patient, a near copy)
            are no independent draws of their group. Without it, texts that share most of their
            runs of three words are found; equal contents always are.

    Raises:
        MisuseError: no samples, no such column, or `duplicates` is neither.
        InvariantError: the values do not add up to the books.
    """
    require_one_of("duplicates", duplicates, ("split", "booked"))
    samples = samples_of(run, samples)
    if samples is None:
        raise MisuseError(
            f"The run was not told what its samples are, so they have no {by!r}. Pass --samples "
            "FILE or samples=, or call inrun.load(run).describe(table) once."
        )
    for name in [by] if clusters is None else [by, clusters]:
        if name not in samples.column_names:
            raise MisuseError(
                f"The samples have no column {name!r}; they have {', '.join(samples.column_names)}."
            )
    run = judged_as(run, judge, samples)
    values = run.values()
    table = described(values, samples)
    group = np.array([UNNAMED if g is None else str(g) for g in table[by].to_pylist()])
    alone = table.drop_columns([clusters]) if clusters not in (None, by) else table
    content = duplicate_groups(alone)
    booked = values["value"].to_numpy()
    books = _books(run, booked)
    shared = _contents_in_several(group, content)
    value = _split(booked, group, content, shared) if duplicates == "split" else booked
    visits = values["visits"].to_numpy()
    every = _Columns(group, value, booked, visits, shared)
    names = np.unique(group)
    place = np.searchsorted(names, group)
    found = intervals(value, place, len(names), clusters_of(table, clusters))
    doubted = doubted_by_group(table, place, len(names))
    rows = [
        _row(name, every, books) | interval | doubt
        for name, interval, doubt in zip(names.tolist(), found, doubted, strict=True)
    ]
    rows.sort(key=lambda row: -row["value"])
    judges = tuple(judge_notes(run, samples))
    return Rollup(by, pa.Table.from_pylist(rows), books, duplicates, judges)


def _books(run: Valued, values: np.ndarray) -> dict[str, float]:
    sums = totals(run.ledger())
    entries = {name: sums[name] for name in ENTRIES}
    size = float(np.abs(values).sum())
    if abs(values.sum() - entries["samples"]) > 1e-6 * max(size, 1e-12):
        raise InvariantError(
            f"Values add up to {values.sum():.6g} and the books say "
            f"{entries['samples']:.6g}. A part of the visits or of the ledger is missing or there "
            "twice, so no shares can be given."
        )
    return {"fall": sum(entries.values()), **entries}


def _contents_in_several(group: np.ndarray, content: np.ndarray) -> np.ndarray:
    """(n,) bool: samples whose content samples of another group have too."""
    pairs = {(c, g) for c, g in zip(content.tolist(), group.tolist(), strict=True) if c >= 0}
    count = Counter(c for c, _ in pairs)
    return np.array([count[c] > 1 for c in content.tolist()], dtype=bool)


def _split(
    booked: np.ndarray, group: np.ndarray, content: np.ndarray, shared: np.ndarray
) -> np.ndarray:
    """Values in which a content's joint value goes in equal parts to the groups that have it."""
    value: np.ndarray = booked.copy()
    rows = np.flatnonzero(shared)
    rows = rows[np.argsort(content[rows], kind="stable")]
    for copies in np.split(rows, np.flatnonzero(np.diff(content[rows])) + 1 if len(rows) else []):
        names = group[copies].tolist()
        joint = booked[copies].sum() / max(1, len(set(names)))
        for row, name in zip(copies.tolist(), names, strict=True):
            value[row] = joint / names.count(name)
    return value


class _Columns(NamedTuple):
    """A number a sample in each, in the order of ids."""

    group: np.ndarray
    value: np.ndarray
    booked: np.ndarray
    visits: np.ndarray
    shared: np.ndarray


def _row(name: str, every: _Columns, books: dict[str, float]) -> dict[str, Any]:
    own = _Columns(*(column[every.group == name] for column in every))
    total = float(own.value.sum())
    return {
        "group": name,
        "samples": len(own.value),
        "visits": int(own.visits.sum()),
        "value": total,
        "share": total / books["samples"] if books["samples"] else float("nan"),
        "share_of_fall": total / books["fall"] if books["fall"] else float("nan"),
        "booked": float(own.booked.sum()),
        "harmful": float((own.booked < 0).mean()),
        "duplicated": int(own.shared.sum()),
    }
