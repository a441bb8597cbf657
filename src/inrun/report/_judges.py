"""The validation rows of a run, for its report: how many judged, by what, and a few of them."""

from __future__ import annotations

import base64
from collections import Counter

import numpy as np
import pyarrow as pa

from inrun.ledger import Run
from inrun.report._page import Card, Section, Table
from inrun.report._shown import small_image

SHOWN = 24
LONGEST = 300  # characters of a text
MOST_LEVELS = 30


def judges(run: Run) -> list[Section]:
    """A section of the rows that values are measured in, where the run was told of them."""
    told = run.samples("validation")
    if told is None or not told.num_rows:
        return []
    words = (
        f"A value is what a sample took off the loss on these {told.num_rows:,} rows. What they do "
        "not hold, the values cannot see; what is wrong in them, the values take for right."
    )
    if told.num_rows > SHOWN:
        words += f" {SHOWN} of them, evenly spaced:"
    return [Section("The validation rows", [words], tables=_levels(told), cards=_cards(told))]


def _levels(told: pa.Table) -> list[Table]:
    """How many rows each label has."""
    if "label" not in told.column_names:
        return []
    counts = Counter(str(label) for label in told["label"].to_pylist())
    rows = [[label, f"{count:,}"] for label, count in counts.most_common(MOST_LEVELS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(MOST_LEVELS))
    if rest:
        rows.append([f"{len(counts) - MOST_LEVELS:,} more labels", f"{rest:,}"])
    return [Table(["label", "rows"], sorted(rows[:MOST_LEVELS]) + rows[MOST_LEVELS:])]


def _cards(told: pa.Table) -> list[Card]:
    at = np.unique(np.linspace(0, told.num_rows - 1, SHOWN).astype(int))
    cards = []
    for row in told.take(pa.array(at)).to_pylist():
        label, image, text = (row.get(name) for name in ("label", "image", "text"))
        png = None if image is None else small_image(image)
        cards.append(
            Card(
                head="" if label is None else str(label),
                fact=f"row {row['sample_id']}",
                text="" if text is None else str(text)[:LONGEST],
                image="" if png is None else base64.b64encode(png).decode(),
            )
        )
    return cards
