"""What an audit found: a run's values beside the truth at a few of its steps, summed up.

A check is one optimizer step whose samples, in random groups, were played out as a game. Each row
of an audit's table is a check; `report` makes of them medians with intervals, and names what
explains the checks where agreement is low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.truth._causes import Cause, likely_causes

FEWEST = 6  # checks that make an interval

AUDIT = pa.schema(
    [
        ("step", pa.int64()),
        ("estimator", pa.string()),
        ("game", pa.string()),
        ("capture", pa.string()),
        ("samples", pa.int64()),
        ("players", pa.int64()),
        ("pearson", pa.float64()),
        ("spearman", pa.float64()),
        ("sum_ratio", pa.float64()),
        ("relative_error", pa.float64()),
        ("spread", pa.float64()),
        ("residual", pa.float64()),
        ("half_agreement", pa.float64()),
        ("age", pa.int64()),
        ("covered", pa.float64()),
        ("low_precision", pa.bool_()),
        ("forecast_error", pa.float64()),
        ("loss_noise", pa.float64()),
        ("validation_rows", pa.int64()),
        ("seconds", pa.float64()),
        ("values", pa.list_(pa.float64())),
        ("truth", pa.list_(pa.float64())),
        ("owners", pa.string()),
        ("share_error", pa.float64()),
        ("judged", pa.string()),
        ("label_gain", pa.float64()),
        ("validation_classes", pa.int64()),
        ("unjudged", pa.float64()),
    ]
)
"""Of a check: `residual` of the step's ledger, as a share of their entries; `spread`, the standard
deviation of the true values over their mean size; `half_agreement`, the correlation of the truth by
one half of the validation rows with that by the other, over many stratified halvings where there
are several targets, null where it cannot be had; `age`, how many steps the optimizer's youngest
moments have seen, null where that does not matter; `forecast_error`, how far `stream` misjudged the
clip coefficient; `loss_noise`, by how much two validation losses at the same weights differ, over
the spread of the true values; `owners`, 'checked' where the truth is made of each sample's own
gradient, computed apart from all others, or 'not checked: ' and why it is made of the captured
shares instead; `share_error`, how far those two are apart, relative to the shares, null where they
were not compared; `judged`, by what the values of the step were: 'all rows', 'a part of the rows'
(`validation_parts`) or 'older gradients' (`validation_every`); `label_gain`, which part of the
validation loss under shuffled labels the own labels take off, and `validation_classes`, how many
labels the validation rows have, null where no labels were found; `unjudged`, the share of the
step's rows whose label no validation row has, null where the training loss shows no labels."""


class Interval(NamedTuple):
    """A number over the checks and its 95 % interval (NaN of fewer than six checks).

    Of a median the interval is between two of the checks themselves (`median_interval`), of the
    noise ceiling by bootstrap.

    Formatted as a number is: `f"{interval:.2%}"`.
    """

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The median with its interval, each number by the specification."""
        median, low, high = (format(value, spec) for value in self)
        return f"{median} [{low}, {high}]" if np.isfinite(self.low) else median


@dataclass(frozen=True)
class AuditReport:
    """An audit in a few numbers; `str()` puts it in words.

    Agreement, sums, errors and residuals are medians over the checks. `ceiling` is the noise
    ceiling, see `noise_ceiling`; `owners` says whether the truth could tell a wrong owner;
    `label_gain` is the last check's.
    """

    checks: int
    seconds: float
    pearson: Interval
    spearman: Interval
    sum_ratio: Interval
    relative_error: Interval
    residual: Interval
    ceiling: Interval | None
    causes: tuple[Cause, ...]
    owners: str = "not checked"
    label_gain: float | None = None

    def __str__(self) -> str:
        """The report as text."""
        none = "not to be had: validation rows cannot be halved"
        rows = [
            ("Pearson R with exact Shapley values", f"{self.pearson:.4f}"),
            ("Spearman R", f"{self.spearman:.4f}"),
            ("sum of the values over the true sum", f"{self.sum_ratio:.3f}"),
            ("relative error of the values", f"{self.relative_error:.2%}"),
            (
                "residual of the books",
                f"{self.residual:.2%}"
                if np.isfinite(self.residual.median)
                else "not known: no step's opening and closing loss are of the same rows",
            ),
            ("noise ceiling", none if self.ceiling is None else f"{self.ceiling:.2f}"),
        ]
        few = self.checks < FEWEST
        said = f"medians; {FEWEST} steps make an interval" if few else "median, 95 % interval"
        lines = [f"{self.checks} steps played out in {self.seconds:.0f} s ({said})"]
        lines += [f"  {name:<38} {value}" for name, value in rows]
        if self.label_gain is not None:
            name = "loss that the validation labels take off"
            lines.append(f"  {name:<38} {self.label_gain:.0%} of that with shuffled labels")
        lines.append(f"  {'whose gradient is whose':<38} {self.owners}")
        for cause in self.causes:
            lines += [f"{cause.name}: {cause.evidence}", f"  -> {cause.remedy}"]
        if not self.causes:
            lines.append("Nothing speaks against these values.")
        return "\n".join(lines)


def report(checks: pa.Table) -> AuditReport:
    """Sums up an audit's table.

    Raises:
        MisuseError: it has no checks.
    """
    if not checks.num_rows:
        raise MisuseError(
            "No step has been checked yet. The audit plays steps out while training runs: train "
            "on, or give it more seconds."
        )
    rows: list[dict[str, Any]] = checks.to_pylist()
    ceiling = noise_ceiling(rows)
    return AuditReport(
        checks=len(rows),
        seconds=sum(row["seconds"] for row in rows),
        pearson=_interval([row["pearson"] for row in rows]),
        spearman=_interval([row["spearman"] for row in rows]),
        sum_ratio=_interval([row["sum_ratio"] for row in rows]),
        relative_error=_interval([row["relative_error"] for row in rows]),
        residual=_interval([row["residual"] for row in rows]),
        ceiling=ceiling,
        causes=likely_causes(rows),
        owners=_owners(rows),
        label_gain=max(rows, key=lambda row: row["step"]).get("label_gain"),
    )


def _owners(checks: Sequence[Mapping[str, Any]]) -> str:
    """In how many checks owners were checked, and why not in the others."""
    told = [
        check.get("owners") or "not checked: an older version made this check" for check in checks
    ]
    not_checked = [text for text in told if text.startswith("not")]
    if not not_checked:
        return next((text for text in told if text != "checked"), "checked")
    if len(not_checked) == len(told):
        return not_checked[0]
    return f"checked in {len(told) - len(not_checked)} of {len(told)} steps; else {not_checked[0]}"


def noise_ceiling(checks: Sequence[Mapping[str, Any]]) -> Interval | None:
    """How well the truth agrees with the truth by another validation set of the same size.

    The correlation r between the two halves' truths, averaged over the checks by their degrees of
    freedom, is brought to full size by Spearman and Brown's 2r / (1 + r); 0 where the halves
    contradict each other.

    Returns:
        The ceiling with its bootstrap interval over the checks; None where no check has halves.
    """
    halved = [c for c in checks if c["half_agreement"] is not None]
    if not halved:
        return None
    r = np.array([c["half_agreement"] for c in halved])
    weights = np.array([c["players"] - 1.0 for c in halved])
    rows = _draws(len(halved))
    drawn = (r[rows] * weights[rows]).sum(1) / weights[rows].sum(1)
    return _with_ends(_full_size(np.average(r, weights=weights)), _full_size(drawn), len(halved))


def _full_size(r: Any) -> Any:
    r = np.maximum(r, 0.0)
    return 2 * r / (1 + r)


def median_interval(x: np.ndarray) -> tuple[float, float]:
    """An interval of the median between two of the numbers, whatever they are drawn from.

    The k-th smallest and the k-th largest of n have the median between them unless fewer than k of
    the numbers fall on one side of it, and k is the largest for which that has 5 % at most. Five
    numbers are too few for any k: NaN.
    """
    from scipy.stats import binom  # a second to import, and attaching needs none of it

    n = len(x)
    k = int(np.sum(2 * binom.cdf(np.arange(n), n, 0.5) <= 0.05))
    if k == 0:
        return float("nan"), float("nan")
    ordered = np.sort(x)
    return float(ordered[k - 1]), float(ordered[n - k])


def _interval(values: Sequence[float]) -> Interval:
    found = np.array([v for v in values if np.isfinite(v)])
    if not len(found):
        return Interval(float("nan"), float("nan"), float("nan"))
    return Interval(float(np.median(found)), *median_interval(found))


def _draws(count: int) -> np.ndarray:
    """Checks drawn with replacement, one row per bootstrap sample."""
    return np.random.default_rng(0).integers(count, size=(2000, count))


def _with_ends(middle: float, drawn: np.ndarray, count: int) -> Interval:
    if count < FEWEST:
        return Interval(float(middle), float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(middle), float(low), float(high))


class Audit:
    """What `Attribution.audit` returns: the checks so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ended = ""  # why, where an error ended it

    def end(self, why: str) -> None:
        """No further step is checked; the checks before stay."""
        self.ended = why

    def go_on(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Has these checks, of the run that goes on."""
        self.rows[:] = map(dict, rows)

    def table(self) -> pa.Table:
        """A row a check; the columns are those of `inrun.truth.AUDIT`."""
        return pa.Table.from_pylist(self.rows, schema=AUDIT)

    def report(self) -> AuditReport:
        """Medians with intervals, and the likely causes of what is low; `print` it.

        Raises:
            MisuseError: no step has been checked yet, or none could be.
        """
        if self.ended and not self.rows:
            raise MisuseError(f"The audit ended before a step was checked: {self.ended}")
        return report(self.table())
