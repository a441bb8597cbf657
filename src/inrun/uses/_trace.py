"""`inrun.trace`: which training samples moved the model towards a text, an image, a behaviour.

A query is a loss: how badly the model does what is asked about. What a training sample took off it
is the sample's value with the query as a target, and the samples with the largest values are where
the behaviour came from. Three ways to such values, in the order of their cost:

    named        the query was a target of the utility while the model trained: its column is there
    tracin       gradients at stored states, as if training had been plain SGD (Pruthi et al., 2020)
    look-ahead   one sweep back through the recorded run: the effect at its end

In-step values of different steps are not of one size: what is visited early lowers every query's
loss, whatever it says. Named targets are therefore ranked by standardised values: each visit's
value less the mean over its step's visits, over their standard deviation, summed over a sample's.
Among n visits none can stand out by more than sqrt(n - 1) deviations. Over many visits of a sample
that keeps a single one from deciding; with few, in small batches, every best visit would be alike.
With under `FEW_VISITS` per sample and `SMALL` per step the deviation is the median of those of the
steps up to `AROUND` before and after.

Values are what leaving a sample out would do to the query's loss, the others keeping their weight,
so that a text's value is the sum of its tokens'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.answers import Answer
from inrun.errors import MisuseError, require_one_of
from inrun.replay import Losses, Trajectory, lookahead, lookahead_parts, tracin
from inrun.uses._samples import Valued, visited
from inrun.utility import Utility

METHODS = ("look-ahead", "tracin", "named")
FEW_VISITS, SMALL, AROUND = 4, 16, 4


@dataclass(frozen=True, repr=False)
class Trace(Answer):
    """What `inrun.trace` returns.

    Attributes:
        method: how it was scored.
        table: one row per query and sample, each query's best source first: `query`, `rank` from 1,
            `sample_id`, `score` (what is ranked by: the value, or its standardised sum), `value`
            (positive: the sample took that much off the query's loss), `share` of all that lowered
            it, `visits`.
        tokens: by (query, sample id), the tokens' values of the highest-ranked samples.
        standardised: whether it is ranked by standardised values.
    """

    method: str
    table: pa.Table
    tokens: dict[tuple[str, Any], list[float]] = field(default_factory=dict)
    standardised: bool = False

    def sentences(self) -> list[str]:
        """Each query's best source, and how it was scored."""
        best = self.table.filter(pc.equal(self.table["rank"], 1)).to_pylist()
        told = [
            f"{row['query']}: sample {row['sample_id']} first, {row['value']:+.3g} "
            f"({row['share']:.1%} of all that lowered its loss)."
            for row in best[:8]
        ]
        how = f"By {self.method}{', standardised within steps' if self.standardised else ''}."
        return [*told, f"{how} Positive: took that much off the query's loss."]

    def of(self, query: str) -> pa.Table:
        """One query's rows.

        Raises:
            MisuseError: no such query.
        """
        found = self.table.filter(pc.equal(self.table["query"], query))
        if not found.num_rows:
            known = ", ".join(dict.fromkeys(self.table["query"].to_pylist()))
            raise MisuseError(f"No query is called {query!r}; there are {known}.")
        return found


def trace(
    run: Valued | Trajectory,
    query: Utility | str | None = None,
    *,
    method: str | None = None,
    standardised: bool | None = None,
    token_losses: Losses | None = None,
    top: int = 10,
    states: int = 5,
) -> Trace:
    """Ranks training samples by what they took off a query's loss.

    Args:
        run: a recorded run (`inrun.record`), or a stored run or live attribution whose targets hold
            the query.
        query: for a recorded run a `Utility` with one target per query; for a stored one a target's
            name, None for all.
        method: 'look-ahead' (default for a recorded run), 'tracin' or 'named' (for a stored one).
        standardised: rank by standardised values; None does so for named targets, where totals
            name what was visited early.
        token_losses: for look-ahead, `token_losses(model, batch)` gives (B, T) terms that add up
            over T to the recorded `losses`: the sources' values are then split by token.
        top: of each query, how many sources are split by token.
        states: for 'tracin', how many of the kept states.

    Raises:
        MisuseError: a method that does not fit the run, or no such target.
    """
    named = not isinstance(run, Trajectory)
    method = method or ("named" if named else "look-ahead")
    require_one_of("method", method, METHODS)
    if named != (method == "named"):
        raise MisuseError(
            f"method {method!r} does not fit a {type(run).__name__}: 'named' reads a stored run's "
            "targets, 'look-ahead' and 'tracin' play a recorded run (inrun.record) again."
        )
    by_step = named if standardised is None else standardised
    if not isinstance(run, Trajectory):
        ranked = _ranked(run.values(), run.visits(), _named(run, query), by_step)
        return Trace(method, ranked, standardised=by_step)
    if not isinstance(query, Utility):
        raise MisuseError("A recorded run is asked by an inrun.Utility, one target a query.")
    if method == "tracin":
        found = tracin(run, query, states, removal="drop")
    else:
        found = lookahead(run, query, removal="drop")
    single = len(query.targets) == 1
    columns = {name: "value" if single else name for name in query.targets}
    ranked = _ranked(found.values(), found.visits(), columns, by_step)
    if token_losses is None or method == "tracin":
        return Trace(method, ranked, standardised=by_step)
    return Trace(method, ranked, _split(run, query, ranked, token_losses, top), by_step)


def _named(run: Valued, query: object) -> dict[str, str]:
    """Queries by name, and the column of each."""
    single = len(run.targets) == 1
    if query is not None and query not in run.targets:
        raise MisuseError(
            f"The run has no target {query!r}; it has {', '.join(run.targets)}. A query that was "
            "no target while the model trained needs a recorded run: inrun.record."
        )
    names = run.targets if query is None else (str(query),)
    return {name: "value" if single else name for name in names}


def _ranked(
    values: pa.Table, visits: pa.Table, columns: dict[str, str], standardised: bool
) -> pa.Table:
    """Rows of `Trace.table`; values and visits of the same samples, values in the order of ids."""
    ids, tables = values["sample_id"], []
    for query, column in columns.items():
        value = values[column].to_numpy()
        score = _standardised(visits, column) if standardised else value
        order = np.argsort(-score, kind="stable")
        lowered = value[value > 0].sum()
        tables.append(
            pa.table(
                {
                    "query": pa.array([query] * len(value), type=pa.string()),
                    "rank": pa.array(np.arange(1, len(value) + 1)),
                    "sample_id": ids.take(order),
                    "score": score[order],
                    "value": value[order],
                    "share": np.maximum(value[order], 0) / lowered if lowered else value[order] * 0,
                    "visits": values["visits"].take(order),
                }
            )
        )
    return pa.concat_tables(tables)


def _standardised(visits: pa.Table, column: str) -> np.ndarray:
    """(n,) in the order of ids: how far a sample's visits stood out in their steps, summed."""
    value, row = visits[column].to_numpy(), visited(visits)[1]
    _, step = np.unique(visits["step"].to_numpy(), return_inverse=True)
    count = np.bincount(step)
    away = value - (np.bincount(step, value) / count)[step]
    own = np.sqrt(np.bincount(step, away**2) / count)
    padded = np.pad(own, AROUND, constant_values=np.nan)
    around = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1), axis=1)
    few = len(row) < FEW_VISITS * (row.max(initial=0) + 1)
    spread = np.where(few & (count < SMALL), around, own)[step]
    out = np.divide(away, spread, out=np.zeros_like(away), where=spread > 0)
    return np.bincount(row, out)


def _split(
    run: Trajectory, query: Utility, ranked: pa.Table, token_losses: Losses, top: int
) -> dict[tuple[str, Any], list[float]]:
    best = [row for row in ranked.to_pylist() if row["rank"] <= top]
    parts = lookahead_parts(run, query, {row["sample_id"] for row in best}, token_losses)
    number = {name: k for k, name in enumerate(query.targets)}
    return {
        (row["query"], row["sample_id"]): parts[row["sample_id"]][:, number[row["query"]]].tolist()
        for row in best
    }
