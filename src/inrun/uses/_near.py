"""Which samples are nearly the same thing: texts that share most of their runs of words.

A text is the set of its runs of `RUN` words; two texts are near duplicates where the Jaccard
similarity of their sets, |A and B| / |A or B|, is `NEAR` or more, and groups are what such pairs
link. Pairs are looked for by MinHash (Broder, 1997): two sets have the same smallest hash with the
probability of their similarity, and of `BANDS` bands of `HASHES` smallest hashes each, a pair of
similarity s shares at least one with probability 1 - (1 - s^HASHES)^BANDS, 0.995 at `NEAR`.
"""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pyarrow as pa
import scipy

from inrun.uses._samples import duplicate_groups

RUN, NEAR, BANDS, HASHES = 3, 0.7, 20, 4
PRIME = (1 << 31) - 1


def near_groups(samples: pa.Table) -> np.ndarray:
    """(n,) int64: the same number for near duplicates and copies, -1 for what is there once."""
    exact = duplicate_groups(samples)
    if "text" not in samples.column_names or not samples.num_rows:
        return exact
    runs = [None if t is None else _runs(str(t)) for t in samples["text"].to_pylist()]
    first: dict[int, int] = {}
    edges = {
        (first.setdefault(number, row), row) for row, number in enumerate(exact.tolist())
        if number >= 0
    }  # fmt: skip
    copies = {b for a, b in edges if a != b}
    known = [row for row, own in enumerate(runs) if own and row not in copies]
    for bucket in _buckets([runs[row] or frozenset() for row in known]):
        near = {(known[a], known[b]) for a, b in itertools.pairwise(bucket)} - edges
        edges |= {(a, b) for a, b in near if _alike(runs[a], runs[b])}
    one, other = np.array([*edges, (0, 0)]).T
    graph = scipy.sparse.coo_array((np.ones(len(one)), (one, other)), shape=2 * (len(runs),))
    number = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    found: np.ndarray = np.where(np.bincount(number)[number] > 1, number, -1)
    return found


def _runs(text: str) -> frozenset[int]:
    words = text.casefold().split()
    ends = range(max(1, len(words) - RUN + 1))
    return frozenset(zlib.crc32(" ".join(words[i : i + RUN]).encode()) for i in ends if words)


def _buckets(sets: list[frozenset[int]]) -> list[list[int]]:
    """Places of sets (none empty) that share a band, two or more in each."""
    if not sets:
        return []
    rng = np.random.default_rng(0)
    factors = rng.integers(1, PRIME, (BANDS * HASHES, 1))
    terms = rng.integers(0, PRIME, (BANDS * HASHES, 1))
    counts = np.array([len(own) for own in sets])
    hashes = np.fromiter(itertools.chain.from_iterable(sets), dtype=np.int64) % PRIME
    begins = counts.cumsum() - counts
    smallest = np.stack([
        np.minimum.reduceat((factor * hashes + term) % PRIME, begins)
        for factor, term in zip(factors, terms, strict=True)
    ])  # fmt: skip
    found = []
    for band, least in enumerate(smallest.reshape(BANDS, HASHES, -1)):
        _, number, count = np.unique(least, axis=1, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(count[number] > 1)
        shared = shared[np.argsort(number[shared], kind="stable")]
        ends = np.flatnonzero(np.diff(number[shared])) + 1
        found += [(part.tolist(), band) for part in np.split(shared, ends) if len(part)]
    return [bucket for bucket, _ in sorted(found, key=lambda one: (one[0][0], one[1]))]


def _alike(one: frozenset[int] | None, other: frozenset[int] | None) -> bool:
    if not one or not other:
        return False
    return len(one & other) >= NEAR * len(one | other)
