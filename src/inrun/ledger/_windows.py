"""What the ledger says of scoring windows: of each, and of a run's in a sentence.

A window's numbers stand in the note of its last row, or of the last row of an audited one, so that
a store needs no table for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite, nan
from typing import NamedTuple

import numpy as np
import pyarrow as pa

TOLD = 0.6  # a cosine below which the user is warned
LEAST = {
    6.5: ((0.9, 0.95), (0.83, 0.93), (0.71, 0.87), (0.3, 0.52)),
    11.0: ((0.95, 0.95), (0.8, 0.84), (0.75, 0.58), (0.4, 0.3)),
    20.0: ((0.95, 0.95), (0.85, 0.9)),
}
"""Mean steps of windows up to these: (mean cosine of their ends, rank correlation of totals with
exact values from there on), the least of the trainings of benchmarks.window and of their thirds.
Long windows can hold a whole swing of the direction between ends that agree. Pearson's R says less.
"""

BOOKS, AUDIT = "a scoring window's books", "a scoring window's audit"
"""What the notes of the rows begin with that tell of a window."""

_NOTE = re.compile(
    rf"(?:{BOOKS}|{AUDIT}): steps (\d+) to (\d+), cosine of its ends (\S+), (\S+)% of the closing"
    r".*?(?:; its own visits have (\S+?))?(?:;|$)"
)


def least_agreement(cosine: float, steps: float) -> float:
    """The least rank correlation with exact values that trainings of such windows had.

    Args:
        cosine: of windows' ends, in the mean.
        steps: of windows, in the mean.

    Returns:
        0 where ranks were next to chance in some training.
    """
    known = next((known for bound, known in LEAST.items() if steps <= bound), ())
    return next((least for bound, least in known if cosine >= bound), 0.0)


def promised(cosine: float, steps: float) -> str:
    """That in words."""
    least = least_agreement(cosine, steps)
    return f"a rank correlation of {least:.2g} or more" if least else "at times no rank correlation"


class ClosedWindow(NamedTuple):
    """What is known of a closed window.

    `first` and `steps`; `cosine` of its ends' directions; `captured`, the share of the closing one
    that the bases hold; `residual`, of its books, over the size of their entries; NaN without.
    `agreement`: the rank correlation of its visits with exact ones, where it was audited, else NaN.
    """

    first: int
    steps: int
    cosine: float
    captured: float
    residual: float
    agreement: float = nan

    @property
    def expected(self) -> float:
        """The least rank correlation with exact values that trainings of such windows had."""
        return least_agreement(self.cosine, self.steps)

    @property
    def turned(self) -> bool:
        """Whether the validation gradient went another way at its end."""
        return self.cosine < TOLD

    def words(self) -> str:
        """For a row of the books; see `windows_in`."""
        audited = f"; its own visits have {self.agreement:.2f}" if isfinite(self.agreement) else ""
        return (
            f"steps {self.first} to {self.first + self.steps - 1}, cosine of its ends "
            f"{self.cosine:.2f}, {self.captured:.0%} of the closing direction captured: "
            f"trainings of such windows had {promised(self.cosine, self.steps)} with exact "
            f"values{audited}"
        )


def windows_in(ledger: pa.Table) -> list[ClosedWindow]:
    """The windows that a ledger's notes tell of, to the digits that stand there."""
    found = []
    for note in ledger["note"].to_pylist():
        told = _NOTE.search(note or "")
        if told is not None:
            first, last, cosine, captured, agreement = told.groups()
            found.append(
                ClosedWindow(
                    int(first), int(last) - int(first) + 1, float(cosine), float(captured) / 100,
                    nan, nan if agreement is None else float(agreement),
                )
            )  # fmt: skip
    return found


def expectation(windows: Sequence[ClosedWindow]) -> str:
    """What to expect of a run's window values, in a sentence; of none an empty one."""
    if not windows:
        return ""
    steps, cosine = (float(np.mean([getattr(w, n) for w in windows])) for n in ("steps", "cosine"))
    agreements = [w.agreement for w in windows if isfinite(w.agreement)]
    audited = "no window was audited yet"
    if agreements:
        audited = (
            f"of {len(agreements)} windows that were scored exactly as well, single visits have "
            f"{np.mean(agreements):.2f} in the mean"
        )
    return (
        f"window values ({len(windows)} windows of {steps:.3g} steps, mean cosine of their ends "
        f"{cosine:.2f}): trainings of such windows had {promised(cosine, steps)} of totals with "
        f"exact ones; {audited}"
    )
