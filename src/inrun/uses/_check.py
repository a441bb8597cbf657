"""Whether a pruning is worth it: training again without the dropped, without random ones, with all.

Each arm is trained from the same seeds, so that differences are taken within a seed. A pruning is
supported where it beats the random control (the 95 % interval of the difference lies above 0) and
is not shown to be worse than all samples (the interval of that difference reaches 0). Results go
to a file as they come, so that a check that was stopped goes on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from inrun.errors import MisuseError, StoreError
from inrun.ledger import Log
from inrun.uses._prune import Pruning

Train = Callable[[list[Any], int], float]
ARMS = ("all samples", "pruned", "random control")


class Mean(NamedTuple):
    """A mean over seeds and Student's 95 % interval of it."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The mean with its interval, each number by the specification."""
        mean, low, high = (format(value, spec) for value in self)
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Check:
    """What `inrun.check_pruning` returns.

    Attributes:
        scores: a number a seed for each arm, as `train` returned them: higher is better.
        seconds: mean time of a training, by arm.
        dropped: share of the samples left out, which is the share of a pass's work saved.
    """

    scores: dict[str, list[float]]
    seconds: dict[str, float]
    dropped: float

    def mean(self, arm: str) -> Mean:
        """An arm's mean score."""
        return mean_of(self.scores[arm])

    def gain(self, over: str) -> Mean:
        """By how much the pruned arm beats another, seed by seed."""
        pairs = zip(self.scores["pruned"], self.scores[over], strict=True)
        return mean_of([a - b for a, b in pairs])

    @property
    def supported(self) -> bool:
        """Better than random, and not shown to be worse than all samples."""
        return self.gain("random control").low > 0 and self.gain("all samples").high >= 0

    @property
    def verdict(self) -> str:
        """In a sentence."""
        over_random, over_all = self.gain("random control"), self.gain("all samples")
        saved = f"{self.dropped:.0%} of the work of each pass"
        if self.supported and over_all.low > 0:
            return f"Supported: better than all samples and than random, and saves {saved}."
        if self.supported:
            return f"Supported: better than random, not shown worse than all, and saves {saved}."
        if over_all.high < 0:
            return "Not supported: training on all samples is better."
        if over_random.high < 0:
            return "Not supported: dropping random samples is better."
        return "Not supported: no better than dropping as many random samples, as far as seen."


def mean_of(numbers: Sequence[float]) -> Mean:
    """The mean and its interval; of one number the interval is NaN."""
    array = np.asarray(numbers, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Mean(mean, float("nan"), float("nan"))
    half = float(student.ppf(0.975, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Mean(mean, mean - half, mean + half)


def check_pruning(
    pruning: Pruning,
    train: Train,
    *,
    seeds: int = 5,
    store: str | os.PathLike[str] | None = None,
    tick: Callable[[str], None] = lambda arm: None,
) -> Check:
    """Trains again on the pruned samples, on as many random ones, and on all.

    Args:
        pruning: from `inrun.prune`.
        train: `train(ids, seed)` trains on these samples from this seed and returns a score on
            data that is neither trained on nor the validation set of the values; higher is better.
        seeds: trainings of each arm, at least 2.
        store: a file for results, a line a training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds, or `train` returned no finite number.
        StoreError: the file is of another pruning.
    """
    if seeds < 2:
        raise MisuseError(f"seeds is {seeds}; an interval needs at least 2 trainings of each arm.")
    question = {"by": pruning.by, "balanced": pruning.balanced, "dropped": pruning.dropped}
    results = Results(store, question, "pruning")
    for seed in range(seeds):
        for arm in ARMS:
            if (arm, seed) not in results.known:
                results.add(arm, seed, *timed(train, _ids(pruning, arm, seed), seed))
            tick(arm)
    found = {arm: [results.known[arm, seed] for seed in range(seeds)] for arm in ARMS}
    every = pruning.table.num_rows
    return Check(
        {arm: [score for score, _ in pairs] for arm, pairs in found.items()},
        {arm: float(np.mean([seconds for _, seconds in pairs])) for arm, pairs in found.items()},
        len(pruning.dropped) / every,
    )


def _ids(pruning: Pruning, arm: str, seed: int) -> list[Any]:
    """The arm's samples, in the order of ids; the control drops as many of each level."""
    if arm == "pruned":
        return pruning.kept
    table = pruning.table.sort_by("sample_id")
    ids: list[Any] = table["sample_id"].to_pylist()
    if arm == "all samples":
        return ids
    levels = table["level"].to_pylist() if pruning.balanced else [""] * len(ids)
    dropped = np.array(table["dropped"].to_pylist())
    generator, keep = np.random.default_rng(seed), np.ones(len(ids), dtype=bool)
    for level in sorted(set(levels)):
        rows = np.flatnonzero(np.array(levels, dtype=object) == level)
        keep[generator.permutation(rows)[: int(dropped[rows].sum())]] = False
    return [i for i, stays in zip(ids, keep.tolist(), strict=True) if stays]


def timed(train: Callable[[Any, int], float], arm: Any, seed: int) -> tuple[float, float]:
    """What a training scores, and its seconds.

    Raises:
        MisuseError: no finite number came back.
    """
    began = time.perf_counter()
    score = train(arm, seed)
    seconds = time.perf_counter() - began
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise MisuseError(
            f"The training returned {score!r}; it must return one finite number, the score on "
            "unseen data, higher for better."
        )
    return number, seconds


class Results:
    """Scores and seconds by (arm, seed), in memory and, a line a training, in a file.

    Args:
        path: of the file, None for none.
        question: what is checked; a file of another question is refused.
        what: its name, for that error.
    """

    def __init__(self, path: str | os.PathLike[str] | None, question: dict[str, Any], what: str):
        self._log = Log(None if path is None else Path(path))
        if not self._log.lines:
            self._log.append(question)
        asked, *lines = self._log.lines
        if asked != question:
            raise StoreError(f"{path} holds the check of another {what}. Name a new file.")
        self.known: dict[tuple[str, int], tuple[float, float]] = {
            (r["arm"], r["seed"]): (r["score"], r["seconds"]) for r in lines
        }

    def add(self, arm: str, seed: int, score: float, seconds: float) -> None:
        """Takes a result."""
        self.known[arm, seed] = (score, seconds)
        self._log.append({"arm": arm, "seed": seed, "score": score, "seconds": seconds})
