"""Samples beside their values: what they are, which are the same thing, which values stand out.

Two samples are duplicates where their text is equal up to case, spaces and the form of their
characters (Unicode NFKC), or, without text, where their image has the same pixels, or else where
all their columns but label and source are equal. Labels are no part of a sample's content: the same
text under two labels is one of the things that must be seen.

A sum over samples can be the work of a few: one gradient a thousand times longer than the rest
decides what a provider's data was worth. A sample is an outlier where the size of its value is more
than `TIMES` times the median sample's.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inrun.errors import MisuseError
from inrun.ledger import Run, opened_picture, samples_table

NOT_CONTENT = ("sample_id", "label", "source")
TIMES = 20.0


class Valued(Protocol):
    """What decisions are made of: a stored run, or a live attribution that has a store."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the utility's targets."""

    def values(self) -> pa.Table:
        """One row per sample, in the order of ids."""

    def visits(self) -> pa.Table:
        """One row per visit."""

    def ledger(self) -> pa.Table:
        """One row per scored step."""


def visited(visits: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the visited samples in their order, (n,), and each visit's place among them."""
    ids = visits["sample_id"].to_numpy(zero_copy_only=False)
    known, row = np.unique(ids, return_inverse=True)
    return known, row


def samples_of(run: Valued, given: Any) -> pa.Table | None:
    """The samples that were given, else those that a stored run was told of (`Run.describe`).

    Raises:
        MisuseError: what was given has no ids, or ids twice.
    """
    if given is None:
        return run.samples() if isinstance(run, Run) else None
    kept = isinstance(given, pa.Table) and "sample_id" in given.column_names
    return given if kept else samples_table(given, None)


def described(values: pa.Table, samples: pa.Table | None) -> pa.Table:
    """The samples' rows in the order of the values; nulls where a sample was not described.

    Args:
        values: a table with `sample_id`.
        samples: see `Run.describe`; None gives a table of ids alone.

    Raises:
        MisuseError: the samples' ids are not of the run's kind.
    """
    ids = values["sample_id"]
    if samples is None:
        return pa.table({"sample_id": ids})
    known = _alike(samples["sample_id"], ids.type)
    place = pc.index_in(ids, value_set=known.combine_chunks())
    return pa.table(
        {"sample_id": ids}
        | {name: samples[name].take(place) for name in samples.column_names if name != "sample_id"}
    )


def _alike(ids: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    try:
        return ids.cast(wanted)
    except pa.ArrowException as error:
        raise MisuseError(
            f"The run's ids are {wanted} and the samples' are not ({error}): they cannot be joined."
        ) from None


def duplicate_groups(samples: pa.Table) -> np.ndarray:
    """(n,) int64: the same number for samples of equal content, -1 for what is there once."""
    keys = _keys(samples)
    count = Counter(keys)
    count[None] = 0  # what has no content is no copy
    number: dict[bytes | None, int] = {}  # by first appearance
    return np.array(
        [number.setdefault(key, len(number)) if count[key] > 1 else -1 for key in keys],
        dtype=np.int64,
    )


def _keys(samples: pa.Table) -> list[bytes | None]:
    names = samples.column_names
    if "text" in names:
        return [None if t is None else _hashed(_text(t)) for t in samples["text"].to_pylist()]
    if "image" in names:
        return [None if i is None else _hashed(_pixels(i)) for i in samples["image"].to_pylist()]
    rest = [name for name in names if name not in NOT_CONTENT]
    if not rest:
        return [None] * samples.num_rows
    columns = [samples[name].to_pylist() for name in rest]
    return [_hashed(repr(row).encode()) for row in zip(*columns, strict=True)]


def _hashed(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _text(text: Any) -> bytes:
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split()).encode()


def _pixels(image: bytes) -> bytes:
    opened = opened_picture(image)
    if opened is None:  # damaged: equal where its bytes are
        return repr(image).encode()
    pixels: bytes = opened.tobytes()
    return f"{opened.mode}{opened.size}".encode() + pixels


def outliers(values: np.ndarray) -> np.ndarray:
    """(n,) bool: |value| above `TIMES` times the median of |value| over samples that have one."""
    size = np.abs(values)
    present = size[size > 0]
    if not len(present):
        return np.zeros(len(values), dtype=bool)
    flagged: np.ndarray = size > TIMES * np.median(present)
    return flagged
