"""Which samples are the same thing: equal contents under different ids.

Two samples are duplicates where their text is equal up to case, spaces and the form of their
characters (Unicode NFKC), or, without text, where their image has the same pixels, or else where
all their columns but label and source are equal. Labels are no part of a sample's content: the same
text under two labels is one of the things that must be seen.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.ledger import opened_picture

NOT_CONTENT = ("sample_id", "label", "source")


def duplicate_groups(samples: pa.Table) -> np.ndarray:
    """(n,) int64: the same number for samples of equal content, -1 for what is there once."""
    keys = _keys(samples)
    known = np.array([key is not None for key in keys], dtype=bool)
    found = np.full(len(keys), -1, dtype=np.int64)
    if not known.any():
        return found
    _, first, number, count = np.unique(
        np.array([key for key in keys if key is not None]),
        return_index=True, return_inverse=True, return_counts=True,
    )  # fmt: skip
    in_order = np.argsort(np.argsort(first))  # numbered by first appearance
    found[known] = np.where(count[number] > 1, in_order[number], -1)
    renumbered = {old: new for new, old in enumerate(sorted(set(found[found >= 0].tolist())))}
    return np.array([renumbered.get(number, -1) for number in found.tolist()], dtype=np.int64)


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
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _text(text: Any) -> bytes:
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split()).encode()


def _pixels(image: bytes) -> bytes:
    opened = opened_picture(image)
    if opened is None:  # damaged: equal where its bytes are
        return repr(image).encode()
    pixels: bytes = opened.tobytes()
    return f"{opened.mode}{opened.size}".encode() + pixels
