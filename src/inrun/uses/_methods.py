"""Values of every method that knows a recorded run, its data or its model, side by side.

    look-ahead                   removal along the whole run, to first order in the weight
    look-ahead, finite push      the exact first step of the removal, its moments run on
    look-ahead, between          slopes along trainings on the way to a removal of half
    in-step                      what the sample did in its own steps, to first order
    in-step, paid out            and through momentum in later steps; no curvature
    TracIn                       gradients in five of the kept states
    gradient dot, ... cosine     gradients in the run's last state
    gradient norm, loss          of the sample alone, in the last state: they know no query
    BM25                         words that the sample shares with the query
    length                       words of the sample
    same class                   1 where sample and query have the same label, else 0
    random

`inrun.truth.lds` and `removal_curve` say which of them rank trainings. A method that needs texts or
labels is left out where there are none. Letters: n samples, K queries.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.replay import Trajectory, gradient_likeness, lookahead, lookahead_between, tracin
from inrun.utility import Utility

STATES = 5  # of TracIn


class Contents(NamedTuple):
    """What is known of samples and queries beside the run.

    Attributes:
        texts: by sample id.
        labels: by sample id.
        query_texts: one per query, in the order of the utility's targets.
        query_labels: the same.
    """

    texts: Mapping[Any, str] = {}
    labels: Mapping[Any, object] = {}
    query_texts: Sequence[str] = ()
    query_labels: Sequence[object] = ()


def values_by_method(
    run: Trajectory,
    utility: Utility,
    contents: Contents = Contents(),  # noqa: B008
    *,
    methods: Collection[str] | None = None,
    seed: int = 0,
    tick: Callable[[str], None] = lambda _: None,
) -> dict[str, pa.Table]:
    """By method, a table with `sample_id` and one column per query, as `inrun.truth.lds` takes it.

    Args:
        run: a recorded run.
        utility: one target for each query.
        contents: texts and labels, where there are any.
        methods: names to keep; None for all that can be had.
        seed: of 'random'.
        tick: called with each method's name before it is computed.

    Raises:
        MisuseError: a method that is unknown, or that needs texts or labels that are not there.
    """
    ways = _ways(run, utility, contents, seed)
    unknown = [name for name in methods or () if name not in ways]
    if unknown:
        raise MisuseError(
            f"The method {unknown[0]!r} is unknown here, or needs texts or labels that the run "
            f"does not hold. There are {', '.join(ways)}."
        )
    found = {}
    for name, way in ways.items():
        if methods is None or name in methods:
            tick(name)
            found[name] = way()
    return found


def _ways(
    run: Trajectory, utility: Utility, contents: Contents, seed: int
) -> dict[str, Callable[[], pa.Table]]:
    """By name, what computes the table."""
    ids = run.sample_ids()
    names = utility.targets if len(utility.targets) > 1 else ("value",)
    likeness: list[Any] = []

    def table(values: np.ndarray) -> pa.Table:
        """Of (n, K), or of (n,) for every query alike."""
        columns = np.broadcast_to(values.reshape(len(ids), -1), (len(ids), len(names)))
        return pa.table({"sample_id": ids} | dict(zip(names, columns.T, strict=True)))

    def like(part: str) -> pa.Table:
        if not likeness:
            likeness.append(gradient_likeness(run, utility))
        return table(getattr(likeness[0], part))

    def losses() -> pa.Table:
        known = run.losses()
        return table(np.array([known[who] for who in ids]))

    draw = np.random.default_rng(seed)
    ways = {
        "look-ahead": lambda: lookahead(run, utility).values(),
        "look-ahead, finite push": lambda: lookahead(run, utility, push="finite").values(),
        "look-ahead, between": lambda: lookahead_between(run, utility, seed=seed),
        "in-step": lambda: lookahead(run, utility, 1).values(),
        "in-step, paid out": lambda: lookahead(run, utility, curvature=False).values(),
        "TracIn": lambda: tracin(run, utility, STATES).values(),
        "gradient dot": lambda: like("dot"),
        "gradient cosine": lambda: like("cosine"),
        "gradient norm": lambda: like("norm"),
        "loss": losses,
    }
    if contents.texts and contents.query_texts:
        texts = [contents.texts.get(who, "") for who in ids]
        ways["BM25"] = lambda: table(bm25(texts, contents.query_texts))
    if contents.texts:
        texts = [contents.texts.get(who, "") for who in ids]
        ways["length"] = lambda: table(np.array([float(len(words(text))) for text in texts]))
    if contents.labels and contents.query_labels:
        own = np.array([str(contents.labels.get(who)) for who in ids])
        asked = np.array([str(label) for label in contents.query_labels])
        ways["same class"] = lambda: table((own[:, None] == asked).astype(np.float64))
    ways["random"] = lambda: table(draw.normal(size=(len(ids), len(names))))
    return ways


def words(text: str) -> list[str]:
    """Words in lower case."""
    return re.findall(r"\w+", text.lower())


def bm25(
    texts: Sequence[str], queries: Sequence[str], k1: float = 1.5, b: float = 0.75
) -> np.ndarray:
    """(n, K): Okapi BM25 of each query in each text.

    A word that m of the n texts have, one of them f times, counts, with l the mean length of a text
    and L that one's,

        ln(1 + (n - m + 1/2) / (m + 1/2)) f (k1 + 1) / (f + k1 (1 - b + b L / l))

    Args:
        texts: of the n samples.
        queries: K of them.
        k1: how soon further occurrences of a word count less.
        b: how far long texts are discounted.
    """
    counts = [Counter(words(text)) for text in texts]
    lengths = np.array([float(count.total()) for count in counts])
    discount = k1 * (1 - b + b * lengths / max(float(lengths.mean()), 1e-12))
    found = np.zeros((len(texts), len(queries)))
    for k, query in enumerate(queries):
        for word in words(query):
            f = np.array([float(count[word]) for count in counts])
            m = int((f > 0).sum())
            rarity = math.log(1 + (len(texts) - m + 0.5) / (m + 0.5))
            found[:, k] += rarity * f * (k1 + 1) / (f + discount)
    return found
