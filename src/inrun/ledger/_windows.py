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
LEAST = ((0.9, 0.99), (0.8, 0.97), (0.75, 0.9), (0.7, 0.87), (0.65, 0.8), (0.45, 0.64), (0.3, 0.43))
"""(cosine of the ends, rank correlation of totals with exact values from there on): the least of
the trainings of benchmarks.window, by their windows' mean cosine. Pearson's R says less: on its
language model it was 0.1 where ranks agree to 0.97."""

BOOKS, AUDIT = "a scoring window's books", "a scoring window's audit"
"""What the notes of the rows begin with that tell of a window."""

_NOTE = re.compile(
    rf"(?:{BOOKS}|{AUDIT}): steps (\d+) to (\d+), cosine of its ends (\S+), (\S+)% of the closing"
    r".*?(?:; its own visits have (\S+?))?(?:;|$)"
)


def least_agreement(cosine: float) -> float:
    """The least rank correlation with exact values that trainings of such a mean cosine had."""
    return next((least for bound, least in LEAST if cosine >= bound), 0.35)


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
        """The least rank correlation with exact values that trainings of such a cosine had."""
        return least_agreement(self.cosine)

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
            f"trainings of such windows had a rank correlation of {self.expected:.2g} or more with "
            f"exact values{audited}"
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
    steps, cosines = ([getattr(w, name) for w in windows] for name in ("steps", "cosine"))
    cosine = float(np.average(cosines))
    agreements = [w.agreement for w in windows if isfinite(w.agreement)]
    audited = "no window was audited yet"
    if agreements:
        audited = (
            f"of {len(agreements)} windows that were scored exactly as well, single visits have "
            f"{np.mean(agreements):.2f} in the mean"
        )
    return (
        f"window values ({len(windows)} windows of {np.mean(steps):.3g} steps, mean cosine of "
        f"their ends {cosine:.2f}): expect a rank correlation of {least_agreement(cosine):.2g} or "
        f"more of totals with exact ones; {audited}"
    )
