"""`inrun.explain`: why the validation loss rose, or fell, in a step or in a stretch of them.

A stretch's change of the loss is closing loss of its last step minus opening loss of its first, and
its books say by what it came. All numbers here are *put on* the loss: above 0 raised it, the other
way round than values. What is usual is the median of the steps around, and what stands out is told
in robust deviations from it (see `inrun.ledger.deviations`).

Through momentum a step's gradient moves the weights for some steps after it, so rows of the
`MEMORY` steps before the stretch are looked at too. The step that began it is the one among them
whose samples, in their own step, did the most unusual thing in the direction of the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.ledger import AROUND, CIRCUMSTANCES, ENTRIES, deviations, usual_of
from inrun.uses._samples import Valued, described, samples_of

MEMORY = 10  # steps before a stretch whose gradients may still act in it
STANDS_OUT = 6.0  # robust deviations from which a visit is named
MOST_NAMED = 20


@dataclass(frozen=True, repr=False)
class Explanation(Answer):
    """What `inrun.explain` returns.

    Attributes:
        first: the first step of the stretch.
        last: its last one.
        change: what the loss rose by, below 0 where it fell.
        usual: median of a stretch of that length around it.
        deviations: of the change from it.
        books: by entry, what it put on the loss in the stretch.
        began: the step whose samples did the most unusual thing.
        circumstances: by name, of the step that began it and what is usual: learning rate,
            gradient norm and clipping.
        table: one row per visit of the stretch and of the steps before that still act in it, what
            pushed most in the direction of the change first: `step`, `sample_id`, `put_on`,
            `deviations`, `elsewhere` (the mean of its other visits), `other_visits`, and what is
            known of the sample.
        sources: one row per source, where the samples have one: `source`, `visits`, `put_on`,
            `usual` (for so many visits), `deviations`.
    """

    first: int
    last: int
    change: float
    usual: float
    deviations: float
    books: dict[str, float]
    began: int
    circumstances: dict[str, tuple[float, float]]
    table: pa.Table
    sources: pa.Table | None = None

    @property
    def named(self) -> list[Any]:
        """Ids of the rows that stand out, at most 20, the strongest first; there may be none."""
        sign = -1.0 if self.change < 0 else 1.0
        found = self.table.filter(
            pc.greater(pc.multiply(self.table["deviations"], sign), STANDS_OUT)
        )
        return list(dict.fromkeys(found["sample_id"].to_pylist()))[:MOST_NAMED]

    def sentences(self) -> list[str]:
        """The change, by what it came, where it began, and who did it."""
        went = "rose" if self.change >= 0 else "fell"
        where = f"step {self.first}" if self.first == self.last else (
            f"steps {self.first} to {self.last}"
        )  # fmt: skip
        said = [
            f"In {where} the validation loss {went} by {abs(self.change):.4g}; usual there is "
            f"{self.usual:+.3g} ({self.deviations:+.1f} robust deviations)."
        ]
        parts = sorted(self.books.items(), key=lambda entry: -abs(entry[1]))
        least = 1e-4 * max(abs(put) for put in self.books.values())
        words = ", ".join(
            f"{name.replace('_', ' ')} {put:+.3g}" for name, put in parts if abs(put) > least
        )
        said.append(f"Of {self.change:+.4g}: {words}." if words else "Its books are empty.")
        said += [*self._beside(), *self._who()]
        return said

    def _beside(self) -> list[str]:
        said = []
        for name, (here, usual) in self.circumstances.items():
            if np.isfinite(here):
                said.append(f"{name.replace('_', ' ')} {here:.3g} (usual {usual:.3g})")
        began = f"It began in step {self.began}"
        return [f"{began}: {', '.join(said)}." if said else f"{began}."]

    def _who(self) -> list[str]:
        named, said = self.named, []
        if self.sources is not None and self.sources.num_rows:
            (most,) = self.sources.slice(0, 1).to_pylist()
            said.append(
                f"By source, {most['source']} stands out most: {most['put_on']:+.3g} in "
                f"{most['visits']} visits, usual {most['usual']:+.3g}."
            )
        if not named:
            return [*said, "No single row stands out among its neighbours."]
        (row,) = self.table.slice(0, 1).to_pylist()
        rest = f" and {len(named) - 1} more" if len(named) > 1 else ""
        other = (
            f"its {row['other_visits']} other visits put on {row['elsewhere']:+.3g} in the mean"
            if row["other_visits"]
            else "it was visited in no other scored step"
        )
        return [
            *said,
            f"Sample {row['sample_id']}{rest} did it: {row['put_on']:+.3g} in step {row['step']}; "
            f"{other}.",
        ]


def jumps(run: Valued, count: int = 3) -> list[int]:
    """The steps in which the loss rose most, in robust deviations from the steps around.

    Of steps that one gradient may act in together, the strongest alone.

    Args:
        run: a stored run, or a live attribution with a store.
        count: at most so many steps.
    """
    ledger = run.ledger()
    steps = ledger["step"].to_numpy()
    away = np.nan_to_num(deviations(_rises(ledger)), nan=-np.inf)
    found: list[int] = []
    for at in np.argsort(-away, kind="stable").tolist():
        if len(found) == count or not np.isfinite(away[at]):
            break
        if all(abs(int(steps[at]) - other) > MEMORY for other in found):
            found.append(int(steps[at]))
    return found


def explain(
    run: Valued,
    step: int | None = None,
    *,
    first: int | None = None,
    last: int | None = None,
    samples: Any = None,
) -> Explanation:
    """Says why the validation loss rose or fell in a step, or in a stretch of steps.

    Args:
        run: a stored run, or a live attribution with a store.
        step: the step; without it and without a stretch the one with the largest jump.
        first: the stretch's first step, with `last` in place of `step`.
        last: its last step.
        samples: see `Run.describe`; None takes what a stored run was told.

    Raises:
        MisuseError: no scored step is there, or a step and a stretch were given.
    """
    ledger = run.ledger()
    steps = ledger["step"].to_numpy()
    first, last = _stretch(run, steps, step, first, last)
    inside = (steps >= first) & (steps <= last)
    length = int(inside.sum())
    rises = _rises(ledger)
    neighbours = _around(inside)
    change, (usual, spread) = _change(ledger, inside), usual_of(rises[neighbours])
    sign = -1.0 if change < 0 else 1.0
    weight = ledger["weight"].to_numpy()
    put = {name: -ledger[name].to_numpy() / weight for name in (*ENTRIES, "residual")}
    books = {name: float(np.nansum(column[inside])) for name, column in put.items()}
    acting = (steps >= first - MEMORY) & (steps <= last)
    own = sign * deviations(put["samples"])
    began = int(np.flatnonzero(acting)[np.nanargmax(np.nan_to_num(own[acting], nan=-np.inf))])
    visits = _visits(run, steps[acting], steps[neighbours & ~acting], sign)
    table, everyones = visits
    told = described(table, samples_of(run, samples))
    for name in told.column_names:
        if name not in ("sample_id", "image"):
            table = table.append_column(name, told[name])
    return Explanation(
        first, last, change, length * usual,
        (change - length * usual) / (spread * np.sqrt(length)), books, int(steps[began]),
        {name: _beside(ledger, name, began, neighbours) for name in CIRCUMSTANCES},
        table, _sources(table, everyones, sign),
    )  # fmt: skip


def _stretch(
    run: Valued, steps: np.ndarray, step: int | None, first: int | None, last: int | None
) -> tuple[int, int]:
    if not len(steps):
        raise MisuseError("The run has no scored step, so there is no change to explain.")
    if step is not None and (first is not None or last is not None):
        raise MisuseError("Give a step, or the first and the last one of a stretch, not both.")
    if step is None and first is None and last is None:
        found = jumps(run, 1)
        step = found[0] if found else int(steps[-1])
    begin = int(steps[0]) if first is None else first
    end = int(steps[-1]) if last is None else last
    if step is not None:
        begin = end = step
    if not ((steps >= begin) & (steps <= end)).any():
        named = f"step {begin}" if begin == end else f"the steps from {begin} to {end}"
        raise MisuseError(
            f"Nothing was scored in {named}: the run has {len(steps):,} scored steps, from "
            f"{steps[0]} to {steps[-1]}."
        )
    return begin, end


def _rises(ledger: pa.Table) -> np.ndarray:
    """(S,) what each step's loss rose by; where it is not known, what its entries add up to."""
    weight = ledger["weight"].to_numpy()
    measured = ledger["closing_loss"].to_numpy() - ledger["opening_loss"].to_numpy()
    booked = -np.sum([ledger[name].to_numpy() for name in ENTRIES], axis=0) / weight
    rises: np.ndarray = np.where(np.isfinite(measured), measured, booked)
    return rises


def _change(ledger: pa.Table, inside: np.ndarray) -> float:
    rows = np.flatnonzero(inside)
    opening = ledger["opening_loss"].to_numpy()[rows[0]]
    closing = ledger["closing_loss"].to_numpy()[rows[-1]]
    found = float(closing - opening)
    return found if np.isfinite(found) else float(_rises(ledger)[rows].sum())


def _around(inside: np.ndarray) -> np.ndarray:
    """(S,) bool: the steps beside the stretch, none of it."""
    rows = np.flatnonzero(inside)
    near = np.zeros(len(inside), dtype=bool)
    near[max(0, rows[0] - AROUND) : rows[-1] + 1 + AROUND] = True
    beside: np.ndarray = near & ~inside
    return beside if beside.any() else inside


def _beside(ledger: pa.Table, name: str, at: int, around: np.ndarray) -> tuple[float, float]:
    column = ledger[name].to_numpy()
    return float(column[at]), usual_of(column[around])[0]


def _visits(
    run: Valued, acting: np.ndarray, around: np.ndarray, sign: float
) -> tuple[pa.Table, tuple[float, float]]:
    """Rows of `Explanation.table` without what samples are, and median and spread of a visit."""
    every = run.visits()
    step, value = every["step"].to_numpy(), every["value"].to_numpy()
    weight = every["weight"].to_numpy() if "weight" in every.column_names else np.ones(len(step))
    put = -value / weight
    beside = np.isin(step, around)
    middle, spread = usual_of(put[beside] if beside.any() else put)
    ids = every["sample_id"].combine_chunks().dictionary_encode()
    codes = np.asarray(ids.indices)
    count, total = np.bincount(codes), np.bincount(codes, put)
    rows = np.flatnonzero(np.isin(step, acting))
    away = (put[rows] - middle) / spread
    order = np.argsort(-sign * away, kind="stable")
    rows, away = rows[order], away[order]
    others = count[codes[rows]] - 1
    rest = total[codes[rows]] - put[rows]
    mean = np.divide(rest, others, out=np.full(len(rows), np.nan), where=others > 0)
    table = pa.table(
        {
            "step": step[rows], "sample_id": every["sample_id"].take(pa.array(rows)),
            "put_on": put[rows], "deviations": away, "elsewhere": mean, "other_visits": others,
        }
    )  # fmt: skip
    return table, (middle, spread)


def _sources(table: pa.Table, everyones: tuple[float, float], sign: float) -> pa.Table | None:
    """Rows of `Explanation.sources`, what stands out most first."""
    if "source" not in table.column_names:
        return None
    middle, spread = everyones
    names, code = np.unique(
        np.array([str(name) for name in table["source"].to_pylist()]), return_inverse=True
    )
    count, put = np.bincount(code), np.bincount(code, table["put_on"].to_numpy())
    away = (put - count * middle) / (spread * np.sqrt(np.maximum(count, 1)))
    order = np.argsort(-sign * away, kind="stable")
    return pa.table(
        {
            "source": names[order], "visits": count[order], "put_on": put[order],
            "usual": count[order] * middle, "deviations": away[order],
        }
    )  # fmt: skip
