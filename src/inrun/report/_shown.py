"""What a report shows of samples, within a budget of bytes: texts, images, rows, tokens.

A page with everything of a large data set in it would not open. Where it does not all fit, every
sample keeps a beginning of its text, the most extreme ones keep more of it and their images, and
the page says what was left out. Of the validation rows it shows how many judged, and a few.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.ledger import Run, opened_picture, token_parts
from inrun.report._page import Card, Section, Table

TEXT_CHARACTERS = 12_000_000
IMAGE_BYTES = 16_000_000
TOKENS = 400_000
LONGEST, SHORTEST = 4000, 80
LARGEST_SIDE = 256
EXTREMES = 400
MOST_BYTES = 400_000  # of one that is shown as it is
JUDGES, SHORT, MOST_LEVELS = 24, 300, 30  # validation rows, characters of one, labels


def priority(scores: Sequence[np.ndarray]) -> np.ndarray:
    """All samples, those at both ends of any score first, the others in random order."""
    n = len(scores[0])
    order = np.random.default_rng(0).permutation(n)
    ends = [np.argsort(score, kind="stable") for score in scores]
    first = np.concatenate([np.concatenate([e[:EXTREMES], e[::-1][:EXTREMES]]) for e in ends])
    both = np.concatenate([first, order])
    _, at = np.unique(both, return_index=True)
    chosen: np.ndarray = both[np.sort(at)]
    return chosen


def texts(column: pa.ChunkedArray, order: np.ndarray) -> tuple[list[str | None], int]:
    """A text a sample, and after how many characters most are cut; 0 where none was."""
    every = [None if t is None else str(t) for t in column.to_pylist()]
    most = max(SHORTEST, min(LONGEST, TEXT_CHARACTERS // max(1, len(every))))
    whole = set(order[: 4 * EXTREMES].tolist())
    shown = [t if t is None else t[: LONGEST if i in whole else most] for i, t in enumerate(every)]
    return shown, most if shown != every else 0


def images(column: pa.ChunkedArray, order: np.ndarray) -> tuple[list[str | None], bool]:
    """A PNG in base64 a sample, None where it did not fit, and whether any was left out."""
    every = column.to_pylist()
    shown: list[str | None] = [None] * len(every)
    left = IMAGE_BYTES
    for row in order.tolist():
        if every[row] is None:
            continue
        small = small_image(every[row])
        if small is None:
            continue
        encoded = base64.b64encode(small).decode()
        left -= len(encoded)
        if left < 0:
            return shown, True
        shown[row] = encoded
    return shown, False


def small_image(image: bytes) -> bytes | None:
    """At most `LARGEST_SIDE` pixels a side, as PNG; None where it cannot be read."""
    opened = opened_picture(image)
    if opened is None:
        return None
    small = max(opened.size) <= LARGEST_SIDE and len(image) <= MOST_BYTES
    if opened.format == "PNG" and small:
        return image
    buffer = io.BytesIO()
    try:
        opened.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        opened.save(buffer, "PNG", optimize=True)
    except Exception:  # PIL cannot write every kind that it reads
        return None
    return buffer.getvalue()


def cells(column: pa.ChunkedArray) -> list[Any]:
    """A column of plain values as JSON holds them; long ones are cut."""
    return [_cell(v) for v in column.to_pylist()]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
            return str(value)  # a browser's numbers end there
        return value[:LONGEST] if isinstance(value, str) else value
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    return str(value)


def tokens(run: Run, ids: pa.ChunkedArray, order: np.ndarray) -> dict[int, list[list[Any]]]:
    """By row, [tokens, values summed over the sample's visits], where the run holds them."""
    wanted = pa.array(ids.combine_chunks().take(order[: 4 * EXTREMES]))
    row_of = {i: row for row, i in zip(order.tolist(), ids.take(order).to_pylist(), strict=True)}
    found: dict[int, list[list[Any]]] = {}
    count = 0
    for part in token_parts(run.path):
        table = part.select(["sample_id", "tokens", "values"])
        table = table.filter(pc.is_in(table["sample_id"], value_set=wanted))
        for visit in table.to_pylist():
            row = row_of[visit["sample_id"]]
            if row in found and found[row][0] == visit["tokens"]:
                found[row][1] = [a + b for a, b in zip(found[row][1], visit["values"], strict=True)]
            elif row not in found and count + len(visit["tokens"]) <= TOKENS:
                found[row] = [visit["tokens"], visit["values"]]
                count += len(visit["tokens"])
    return {row: [t, [float(f"{v:.4g}") for v in values]] for row, (t, values) in found.items()}


def judges(run: Run) -> list[Section]:
    """A section of the rows that values are measured in, where the run was told of them."""
    told = run.samples("validation")
    if told is None or not told.num_rows:
        return []
    words = (
        f"A value is what a sample took off the loss on these {told.num_rows:,} rows. What they do "
        "not hold, the values cannot see; what is wrong in them, the values take for right."
    )
    if told.num_rows > JUDGES:
        words += f" {JUDGES} of them, evenly spaced:"
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
    at = np.unique(np.linspace(0, told.num_rows - 1, JUDGES).astype(int))
    cards = []
    for row in told.take(pa.array(at)).to_pylist():
        label, image, text = (row.get(name) for name in ("label", "image", "text"))
        png = None if image is None else small_image(image)
        cards.append(
            Card(
                head="" if label is None else str(label),
                fact=f"row {row['sample_id']}",
                text="" if text is None else str(text)[:SHORT],
                image="" if png is None else base64.b64encode(png).decode(),
            )
        )
    return cards
