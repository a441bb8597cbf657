"""`inrun.diff`: two runs beside each other: their data, their books, values of common samples.

Samples are common by id. Where both runs know the samples, a common one whose content (text, image
or columns) or label is another is said, since its values then belong to different things.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.ledger import Run, known_residual_shares
from inrun.uses._confounds import spearman
from inrun.uses._load import load
from inrun.uses._samples import described

ENTRIES = ("immediate", "paid_out", "before_window", "weight_decay", "unattributed", "other",
           "residual")  # fmt: skip
WORDS = {
    "immediate": "samples, in their own steps", "paid_out": "samples, through momentum",
    "before_window": "momentum",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Difference(Answer):
    """What `inrun.diff` returns; the numbers are those of the first and of the second run.

    Attributes:
        names: of the two runs.
        table: one row per common sample, the largest change of rank first: `sample_id`, `value_a`,
            `value_b`, `rank_a` and `rank_b` (by normalised value among the common samples, 0 the
            most harmful, 1 the most helpful), `moved` (`rank_b - rank_a`), `changed` (what of it is
            another thing: '', 'content', 'label', 'content, label'), and what is known of it.
        only: how many samples only one of them has.
        agreement: rank correlation of the common samples' normalised values; NaN below two.
        settings: one row per setting that differs: `name`, `a`, `b`.
        books: one row per entry: `entry`, `a`, `b`, what it took off the loss in each.
        groups: one row per level of label and source: `column`, `level`, `samples_a`, `samples_b`,
            `value_a`, `value_b` (sums); what counts differ most of comes first.
    """

    names: tuple[str, str]
    table: pa.Table
    only: tuple[int, int]
    agreement: float
    settings: pa.Table
    books: pa.Table
    groups: pa.Table

    def sentences(self) -> list[str]:
        """What changed in the data, in the books, and in the common samples' values."""
        a, b = self.names
        n = self.table.num_rows
        words = [
            what for told in self.table["changed"].to_pylist() if told for what in told.split(", ")
        ]
        changed = sorted(Counter(words).items())
        data = [f"{n:,} common samples, {self.only[0]:,} in {a} alone, {self.only[1]:,} in {b}"]
        data += [f"{count:,} with another {what}" for what, count in changed]
        said = [f"Data: {'; '.join(data)}."]
        said += [
            f"Setting {row['name']}: {row['a']} in {a}, {row['b']} in {b}."
            for row in self.settings.to_pylist()
        ]
        falls = {row["entry"]: row for row in self.books.to_pylist()}
        fall = falls["fall of the loss"]
        if np.isfinite(fall["a"]) and np.isfinite(fall["b"]):
            entries = [row for row in falls.values() if row["entry"] in _PARTS]
            most = max(entries, key=lambda row: abs(row["b"] - row["a"]))
            said.append(
                f"The validation loss fell by {fall['a']:.4g} in {a} and by {fall['b']:.4g} in "
                f"{b}. What differs most is {most['entry']}: {most['a']:+.4g} and {most['b']:+.4g}."
            )
        return [*said, self._values()]

    def _values(self) -> str:
        n, rho = self.table.num_rows, self.agreement
        if not np.isfinite(rho):
            return "Too few common samples to compare values."
        signs = pc.not_equal(pc.less(self.table["value_a"], 0), pc.less(self.table["value_b"], 0))
        return (
            f"Values of the common samples have a rank correlation of {rho:+.2f}; the sign is "
            f"another for {int(pc.sum(signs).as_py()):,} of {n:,}."
        )


_PARTS = {WORDS.get(name, name.replace("_", " ")) for name in ENTRIES}


def diff(a: Run | str | os.PathLike[str], b: Run | str | os.PathLike[str]) -> Difference:
    """What changed between two runs: data, settings, books, and the values of common samples.

    Args:
        a: a stored run, or its folder.
        b: the other.

    Raises:
        MisuseError: a folder holds no run of values, or one run's ids are numbers and the other's
            text.
        StoreError: a run is not there, is damaged, or holds no visits.
    """
    runs = [_opened(run) for run in (a, b)]
    if runs[0].id_type != runs[1].id_type:
        raise MisuseError(
            f"The runs' ids are {runs[0].id_type} and {runs[1].id_type}: no sample of one can be "
            "found in the other. Give both trainings the same ids."
        )
    values = [run.values() for run in runs]
    samples = [described(v, run.samples()) for v, run in zip(values, runs, strict=True)]
    table, only = _common(values, samples)
    names = [run.path.resolve().name for run in runs]
    if names[0] == names[1]:
        names = [str(run.path) for run in runs]
    return Difference(
        (names[0], names[1]), table, only,
        spearman(table["rank_a"].to_numpy(), table["rank_b"].to_numpy()),
        _settings(runs), _books(runs), _groups(values, samples),
    )  # fmt: skip


def _opened(run: Any) -> Run:
    found = run if isinstance(run, Run) else load(run)
    if not isinstance(found, Run):
        raise MisuseError(f"{run} holds no run with values: give folders of attach(store=...).")
    return found


def _common(values: list[pa.Table], samples: list[pa.Table]) -> tuple[pa.Table, tuple[int, int]]:
    """Common samples, and how many only one of them has."""
    place = pc.index_in(values[0]["sample_id"], value_set=values[1]["sample_id"].combine_chunks())
    there = pc.is_valid(place)
    at = [pc.indices_nonzero(there), place.filter(there)]
    both = [v.take(i) for v, i in zip(values, at, strict=True)]
    told = [s.take(i) for s, i in zip(samples, at, strict=True)]
    ranks = [_ranks(table["value_normalised"].to_numpy()) for table in both]
    columns = {
        "sample_id": both[0]["sample_id"],
        "value_a": both[0]["value"], "value_b": both[1]["value"],
        "rank_a": ranks[0], "rank_b": ranks[1], "moved": ranks[1] - ranks[0],
        "changed": _changed(*told),
    }  # fmt: skip
    known = [t for t in told[::-1] if t.num_columns > 1][:1]
    rest = {
        f"sample {n}" if n in columns else n: t[n]
        for t in known for n in t.column_names[1:] if n != "image"
    }  # fmt: skip
    table = pa.table(columns | rest)
    order = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable")
    only = tuple(v.num_rows - table.num_rows for v in values)
    return table.take(pa.array(order)), (only[0], only[1])


def _ranks(x: np.ndarray) -> np.ndarray:
    """From 0, the lowest, to 1."""
    order = np.argsort(np.argsort(x, kind="stable"), kind="stable")
    ranks: np.ndarray = order / max(1, len(x) - 1)
    return ranks


def _changed(a: pa.Table, b: pa.Table) -> list[str]:
    """What of each sample is another thing; nothing where only one of the runs knows."""
    found: list[list[str]] = [[] for _ in range(a.num_rows)]
    for word, names in (("content", ("text", "image")), ("label", ("label",))):
        for name in names:
            if name in a.column_names and name in b.column_names:
                pairs = zip(a[name].to_pylist(), b[name].to_pylist(), strict=True)
                for row, (x, y) in enumerate(pairs):
                    if x is not None and y is not None and str(x) != str(y):
                        found[row].append(word)
    return [", ".join(dict.fromkeys(words)) for words in found]


def _settings(runs: list[Run]) -> pa.Table:
    """Of the runs' own manifests, what says how values were made, where it differs."""
    described_by = [
        {
            "estimator": run.estimator,
            "targets": ", ".join(run.targets),
            "weights": ", ".join(f"{w:.4g}" for w in run.weights.values()),
            "scored steps": f"{run.ledger().num_rows:,}",
            "values": {"paid_out": "with momentum", "standard_error": "sampled steps"}.get(
                run.extra or "", "immediate"
            ),
            "median residual": _median(known_residual_shares(run.ledger())),
        }
        for run in runs
    ]
    rows = [
        {"name": name, "a": x, "b": described_by[1][name]}
        for name, x in described_by[0].items()
        if x != described_by[1][name]
    ]
    kinds = pa.schema([("name", pa.string()), ("a", pa.string()), ("b", pa.string())])
    return pa.Table.from_pylist(rows, schema=kinds)


def _median(shares: np.ndarray) -> str:
    return f"{np.median(shares):.2%}" if shares.size else "not known"


def _books(runs: list[Run]) -> pa.Table:
    sums = [run.balance() for run in runs]
    ledgers = [run.ledger() for run in runs]
    ends = {
        name: [_end(ledger, *of) for ledger in ledgers]
        for name, of in (
            ("opening loss", ("opening_loss", 0)), ("closing loss", ("closing_loss", -1)),
        )
    }  # fmt: skip
    falls = [opened - closed for opened, closed in zip(*ends.values(), strict=True)]
    entries = {
        WORDS.get(name, name.replace("_", " ")): [found.get(name, 0.0) for found in sums]
        for name in ENTRIES
    }
    there = {name: both for name, both in entries.items() if any(np.nan_to_num(both, nan=1.0))}
    every = {**ends, "fall of the loss": falls, **there}
    columns = list(zip(*every.values(), strict=True))
    return pa.table({"entry": list(every), "a": columns[0], "b": columns[1]})


def _end(ledger: pa.Table, column: str, at: int) -> float:
    known = ledger[column].to_numpy()
    return float(known[at]) if len(known) else float("nan")


def _groups(values: list[pa.Table], samples: list[pa.Table]) -> pa.Table:
    rows = []
    for column in ("label", "source"):
        if not all(column in table.column_names for table in samples):
            continue
        sides = []
        for v, s in zip(values, samples, strict=True):
            levels = ["(none)" if x is None else str(x) for x in s[column].to_pylist()]
            names, row = np.unique(np.array(levels, dtype=object), return_inverse=True)
            sums = np.bincount(row, v["value"].to_numpy())
            sides.append(
                dict(zip(names, zip(np.bincount(row).tolist(), sums, strict=True), strict=True))
            )
        for level in sorted(sides[0].keys() | sides[1].keys()):
            (na, va), (nb, vb) = (side.get(level, (0, 0.0)) for side in sides)
            rows.append(
                {"column": column, "level": level, "samples_a": na, "samples_b": nb,
                 "value_a": float(va), "value_b": float(vb)}
            )  # fmt: skip
    rows.sort(key=lambda row: -abs(row["value_b"] - row["value_a"]))
    return pa.Table.from_pylist(rows, schema=_GROUPS)


_GROUPS = pa.schema(
    [("column", pa.string()), ("level", pa.string()), ("samples_a", pa.int64()),
     ("samples_b", pa.int64()), ("value_a", pa.float64()), ("value_b", pa.float64())]
)  # fmt: skip
