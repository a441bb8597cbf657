"""The books: where a step's change of the validation loss came from.

    opening loss - closing loss = samples + momentum + weight decay + residual

All entries are in units of the validation loss, positive where they lowered it. The residual is
what the method does not account for; it is judged against the size of the entries, because a step's
gains and losses may cancel.

Under momentum a sample acts again in later steps. Where that is paid out to it, the step that it
was in has it as `paid_out`: it is part of the samples' values and of the momentum entries of the
steps after, and in no step's sum. `balance` sets the momentum entries apart: what was paid to
samples, what is still in the momentum because their windows are open, and what came from before
any window.

Where only some steps are scored, each of them stands for `weight` steps: its entries are multiplied
by that, so that sums over the run stay unbiased, and its losses are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TOTAL = "total"

LEDGER = pa.schema(
    [
        ("step", pa.int64()),
        ("target", pa.string()),
        ("estimator", pa.string()),
        ("visits", pa.int64()),
        ("weight", pa.float64()),
        ("opening_loss", pa.float64()),
        ("closing_loss", pa.float64()),
        ("samples", pa.float64()),
        ("momentum", pa.float64()),
        ("weight_decay", pa.float64()),
        ("residual", pa.float64()),
        ("paid_out", pa.float64()),
    ]
)


class Entries(NamedTuple):
    """One step's entries for K targets, each (K,) float64."""

    opening: np.ndarray
    closing: np.ndarray
    samples: np.ndarray
    momentum: np.ndarray
    weight_decay: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """What the entries leave of the loss's change."""
        change = self.opening - self.closing
        left: np.ndarray = change - self.samples - self.momentum - self.weight_decay
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
    """The step's rows: the weighted total, and one a target where there are several."""
    booked = [entries.samples, entries.momentum, entries.weight_decay, entries.residual]
    scaled = [weight * entry for entry in booked]
    columns = np.stack([entries.opening, entries.closing, *scaled])  # (6, K)
    parts = [(TOTAL, columns @ np.asarray(weights))]
    if len(targets) > 1:
        parts += [(target, columns[:, k]) for k, target in enumerate(targets)]
    names = LEDGER.names[5:]
    about = {"estimator": estimator, "visits": visits, "weight": weight}
    return [
        {"step": step, "target": target}
        | about
        | dict(zip(names, (*(float(x) for x in column), 0.0), strict=True))
        for target, column in parts
    ]


def residual_shares(ledger: pa.Table) -> np.ndarray:
    """|residual| / (|samples| + |momentum| + |weight decay|) of each row; 0 / 0 counts 0."""
    size = sum(np.abs(ledger[name].to_numpy()) for name in ("samples", "momentum", "weight_decay"))
    residual = np.abs(ledger["residual"].to_numpy())
    shares: np.ndarray = np.divide(
        residual, size, out=np.zeros_like(residual), where=np.asarray(size) > 0
    )
    return shares


def balance(ledger: pa.Table, still_in_momentum: float = 0.0) -> dict[str, float]:
    """What the validation loss fell by, and by what: one target's books in one row.

    Args:
        ledger: one target's rows, a row a step.
        still_in_momentum: what momentum did within the window of steps that are not paid yet.

    Returns:
        See `Attribution.balance`.
    """
    sums = {
        name: float(pc.sum(ledger[name]).as_py() or 0.0)
        for name in ("samples", "momentum", "weight_decay", "residual", "paid_out")
    }
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
        "weight_decay": sums["weight_decay"],
        "residual": sums["residual"],
    }


def totals(ledger: pa.Table) -> dict[str, float]:
    """Sums of the entries over a run, its first opening and its last closing loss.

    What momentum paid out to samples counts with the samples, and not with momentum.
    """
    sums = {
        name: float(pc.sum(ledger[name]).as_py() or 0.0)
        for name in ("samples", "momentum", "weight_decay", "residual", "paid_out")
    }
    sums["samples"] += sums["paid_out"]
    sums["momentum"] -= sums["paid_out"]
    if ledger.num_rows:
        sums["opening_loss"] = float(ledger["opening_loss"][0].as_py())
        sums["closing_loss"] = float(ledger["closing_loss"][-1].as_py())
    return sums
