"""The ledger: where a step's change of the validation loss came from.

    opening loss - closing loss
        = samples + momentum + weight decay + unattributed + other + residual

All entries are in units of the validation loss, positive where they lowered it. `unattributed` is
what gradients did that the user declared to be of no sample; `other` is what changed the loss
between the last step and this one's opening pass without any step: running statistics, weights that
were edited, a second model that the loss depends on. The residual is what the method does not
account for; it is judged against the size of the entries, because a step's gains and losses may
cancel. Where a number is not known it is NaN, and the row's `note` says why.

Under momentum a sample acts again in later steps. Where that is paid out to it, the step that it
was in has it as `paid_out`: it is part of the samples' values and of the momentum entries of the
steps after, and in no step's sum. `balance` sets the momentum entries apart: what was paid to
samples, what is still in the momentum because their windows are open, and what came from before
any window.

Beside the entries stand the step's `learning_rate` (the largest of its parameter groups),
`gradient_norm` as the optimizer took it, and `gradient_scale`, that over the norm that the backward
passes left: below 1 where it was clipped.

Where only some steps are scored, each of them stands for `weight` steps: its entries are multiplied
by that, so that sums over the run stay unbiased, and its losses are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TOTAL = "total"

ENTRIES = ("samples", "momentum", "weight_decay", "unattributed", "other")
"""What the ledger explains the fall of the loss by; what it leaves is the residual."""

CIRCUMSTANCES = ("learning_rate", "gradient_norm", "gradient_scale")
"""What stands beside a step's entries; NaN where it is not known."""

LEDGER = pa.schema(
    [
        ("step", pa.int64()),
        ("target", pa.string()),
        ("estimator", pa.string()),
        ("visits", pa.int64()),
        *[(name, pa.float64()) for name in ("weight", "opening_loss", "closing_loss", *ENTRIES)],
        ("residual", pa.float64()),
        ("paid_out", pa.float64()),
        *[(name, pa.float64()) for name in CIRCUMSTANCES],
        ("note", pa.string()),
    ]
)

NO_PASS = "no validation pass was run after this step (validation_every)"
OTHER_ROWS = "opening and closing loss are of different validation rows (validation_parts)"

WITHIN_WINDOW = "within a scoring window"

NOT_FINITE = "an older version booked numbers that are not finite in this step; they count as 0"

_LATER = ("unattributed", "other", *CIRCUMSTANCES, "note")  # columns that older stores do not have


class Entries(NamedTuple):
    """One step's entries for K targets, each (K,) float64; `note`: why some are not known.

    `earlier`: what rows before this one explain of the change between its losses, where it closes a
    scoring window, whose other rows have no losses.
    """

    opening: np.ndarray
    closing: np.ndarray
    samples: np.ndarray
    momentum: np.ndarray
    weight_decay: np.ndarray
    unattributed: np.ndarray | float = 0.0
    other: np.ndarray | float = 0.0
    note: str = ""
    learning_rate: float = math.nan
    gradient_norm: float = math.nan
    gradient_scale: float = math.nan
    earlier: np.ndarray | float = 0.0

    @property
    def explained(self) -> list[np.ndarray | float]:
        """In the order of `ENTRIES`."""
        return [getattr(self, name) for name in ENTRIES]

    @property
    def residual(self) -> np.ndarray:
        """What the entries leave of the loss's change."""
        left: np.ndarray = self.opening - self.closing - self.earlier
        for entry in self.explained:
            left = left - entry
        return left


def ledger_rows(
    step: int,
    estimator: str,
    visits: int,
    targets: Sequence[str],
    weights: Sequence[float],
    entries: Entries,
    weight: float = 1.0,
) -> list[dict[str, object]]:
    """The step's rows: the weighted total, and one per target where there are several."""
    scaled = [weight * entry for entry in (*entries.explained, entries.residual)]
    columns = np.stack(np.broadcast_arrays(entries.opening, entries.closing, *scaled))  # (8, K)
    parts = [(TOTAL, columns @ np.asarray(weights))]
    if len(targets) > 1:
        parts += [(target, columns[:, k]) for k, target in enumerate(targets)]
    names = ("opening_loss", "closing_loss", *ENTRIES, "residual", "paid_out")
    about = {"estimator": estimator, "visits": visits, "weight": weight, "note": entries.note}
    about |= {name: getattr(entries, name) for name in CIRCUMSTANCES}
    return [
        {"step": step, "target": target}
        | about
        | dict(zip(names, (*(float(x) for x in column), 0.0), strict=True))
        for target, column in parts
    ]


def in_present_columns(rows: pa.Table) -> pa.Table:
    """Books that an older version stored, with the entries that it did not know as 0."""
    missing = [name for name in _LATER if name not in rows.column_names]
    if sorted([*rows.column_names, *missing]) != sorted(LEDGER.names):
        return rows
    for name in missing:
        field = LEDGER.field(name)
        nothing = "" if name == "note" else math.nan if name in CIRCUMSTANCES else 0.0
        rows = rows.append_column(
            field, pa.array([nothing] * rows.num_rows, field.type, from_pandas=False)
        )
    return _finite(rows.select(LEDGER.names))


def _finite(rows: pa.Table) -> pa.Table:
    """Entries that are not finite as 0, and the row's note says so; its residual is not known."""
    names = (*ENTRIES, "paid_out", "residual")
    strange = [rows.schema.field(name).type != LEDGER.field(name).type for name in names]
    if any(strange) or any(rows[name].null_count for name in names):
        return rows  # for the reader to refuse
    entries = {name: rows[name].to_numpy() for name in names[:-1]}
    bad = ~np.all([np.isfinite(entry) for entry in entries.values()], axis=0)
    if not bad.any():
        return rows
    columns = {name: np.where(np.isfinite(entry), entry, 0.0) for name, entry in entries.items()}
    columns["residual"] = np.where(bad, np.nan, rows["residual"].to_numpy())
    for name, column in columns.items():
        place = LEDGER.get_field_index(name)
        rows = rows.set_column(place, LEDGER.field(name), pa.array(column, from_pandas=False))
    notes = [NOT_FINITE if b else n for b, n in zip(bad, rows["note"].to_pylist(), strict=True)]
    return rows.set_column(LEDGER.get_field_index("note"), LEDGER.field("note"), pa.array(notes))


def residual_shares(ledger: pa.Table) -> np.ndarray:
    """|residual| / size of the entries of each row; 0 / 0 counts 0, NaN where it is not known."""
    size = sum(np.abs(ledger[name].to_numpy()) for name in ENTRIES)
    residual = np.abs(ledger["residual"].to_numpy())
    none = np.where(np.isnan(residual), np.nan, 0.0)
    shares: np.ndarray = np.divide(residual, size, out=none, where=np.asarray(size) > 0)
    return shares


def known_residual_shares(ledger: pa.Table) -> np.ndarray:
    """Those of `residual_shares` that are known, of which there may be none."""
    shares = residual_shares(ledger)
    known: np.ndarray = shares[np.isfinite(shares)]
    return known


def balance(ledger: pa.Table, still_in_momentum: float = 0.0) -> dict[str, float]:
    """What the validation loss fell by, and by what: one target's ledger in one row.

    Args:
        ledger: one target's rows, one row per step.
        still_in_momentum: what momentum did within the window of steps that are not paid yet.

    Returns:
        See `Attribution.balance`.
    """
    sums = _sums(ledger)
    fall = 0.0
    if ledger.num_rows:
        opening, closing = ledger["opening_loss"][0].as_py(), ledger["closing_loss"][-1].as_py()
        fall = float(opening) - float(closing)
    return {
        "fall": fall,
        "immediate": sums["samples"],
        "paid_out": sums["paid_out"],
        "still_in_momentum": still_in_momentum,
        "before_window": sums["momentum"] - sums["paid_out"] - still_in_momentum,
        **{name: sums[name] for name in ("weight_decay", "unattributed", "other", "residual")},
    }


def totals(ledger: pa.Table) -> dict[str, float]:
    """Sums of the entries over a run, its first opening and its last closing loss.

    What momentum paid out to samples counts with the samples, and not with momentum.
    """
    sums = _sums(ledger)
    sums["samples"] += sums["paid_out"]
    sums["momentum"] -= sums["paid_out"]
    if ledger.num_rows:
        sums["opening_loss"] = float(ledger["opening_loss"][0].as_py())
        sums["closing_loss"] = float(ledger["closing_loss"][-1].as_py())
    return sums


def _sums(ledger: pa.Table) -> dict[str, float]:
    """Sums of the columns; a scoring window's residual is in its last row alone."""
    within = [str(note).startswith(WITHIN_WINDOW) for note in ledger["note"].to_pylist()]
    residual = np.where(within, 0.0, ledger["residual"].to_numpy())
    place = ledger.schema.get_field_index("residual")
    ledger = ledger.set_column(place, "residual", pa.array(residual, pa.float64()))
    return {
        name: float(pc.sum(ledger[name]).as_py() or 0.0)
        for name in (*ENTRIES, "residual", "paid_out")
    }


def is_rounding(row: Mapping[str, Any]) -> bool:
    """Whether a row's residual is no larger than what single precision loses of its two losses.

    A loss near L is known to eps L / 2, so that the difference of two is known to eps L, and a
    sum's own rounding is taken to be as large: |residual| <= 2 eps max(|opening|, |closing|).
    """
    size = max(abs(row["opening_loss"]), abs(row["closing_loss"]))
    return bool(abs(row["residual"]) <= 2 * float(np.finfo(np.float32).eps) * size)
