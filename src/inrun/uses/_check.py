"""Whether a choice of samples is worth it: every arm trained again from the same seeds.

An arm is what is trained on: the choice, and its controls. Differences between arms are taken
within a seed. A choice is supported where it beats each of its controls (the 95 % interval of the
difference lies above 0); training on all samples it need only not be shown to be worse than (the
interval reaches 0), since it does less work.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from scipy.stats import t as student

from inrun.answers import Answer
from inrun.errors import MisuseError, StoreError
from inrun.truth import TrainingResults, read_results
from inrun.uses._prune import Pruning

Arm = TypeVar("Arm")
Train = Callable[[list[Any], int], float]
Tick = Callable[[str], None]
ALL, PRUNED, RANDOM = ARMS = ("all samples", "pruned", "random control")


class Mean(NamedTuple):
    """A mean over seeds and Student's 95 % interval of it."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The mean with its interval, each number by the specification."""
        mean, low, high = (format(value, spec) for value in self)
        return f"{mean} [{low}, {high}]"


def half_interval(x: np.ndarray) -> float:
    """Half of Student's 95 % interval of the mean; NaN for one number."""
    if len(x) < 2:
        return math.nan
    return float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def mean_of(numbers: Sequence[float]) -> Mean:
    """The mean and its interval."""
    array = np.asarray(numbers, dtype=np.float64)
    mean, half = float(array.mean()), half_interval(array)
    return Mean(mean, mean - half, mean + half)


@dataclass(frozen=True, repr=False)
class Comparison(Answer):
    """What `inrun.check_pruning` and `inrun.select.check` return.

    Attributes:
        scores: one number per seed for each arm, as `train` returned them: higher is better.
        seconds: mean time of a training, by arm.
        choice: the arm in question; the others are its controls.
        saved: the share of the samples that it leaves out, where that is all that it does.
    """

    scores: dict[str, list[float]]
    seconds: dict[str, float]
    choice: str
    saved: float | None = None

    @property
    def controls(self) -> list[str]:
        """The other arms."""
        return [arm for arm in self.scores if arm != self.choice]

    def mean(self, arm: str) -> Mean:
        """An arm's mean score and its 95 % interval."""
        return mean_of(self.scores[arm])

    def gain(self, over: str) -> Mean:
        """By how much the choice beats another arm, seed by seed."""
        pairs = zip(self.scores[self.choice], self.scores[over], strict=True)
        return mean_of([a - b for a, b in pairs])

    @property
    def supported(self) -> bool:
        """Whether it beats every control, and is not shown to be worse than all samples."""
        gains = {arm: self.gain(arm) for arm in self.controls}
        return all(gain.high >= 0 if arm == ALL else gain.low > 0 for arm, gain in gains.items())

    @property
    def verdict(self) -> str:
        """In a sentence."""
        gains = {arm: self.gain(arm) for arm in self.controls}
        better = " and than ".join(arm for arm, gain in gains.items() if gain.low > 0)
        if self.supported:
            not_worse = "" if gains.get(ALL, (0, 1))[1] > 0 else f", not shown worse than {ALL}"
            saves = f", and saves {self.saved:.0%} of the work of each pass" if self.saved else ""
            return f"Supported: better than {better}{not_worse}{saves}."
        for arm, gain in gains.items():
            if gain.high < 0:
                return f"Not supported: training on {arm} is better."
        rest = " or than ".join(a for a, gain in gains.items() if a != ALL and not gain.low > 0)
        return f"Not supported: {self.choice} is not shown to be better than {rest}."

    def sentences(self) -> list[str]:
        """The verdict."""
        seeds = len(self.scores[self.choice])
        return [self.verdict, f"{seeds} trainings of each arm; low and high are 95 % intervals."]

    def to_arrow(self) -> pa.Table:
        """One row per arm: its mean score, what the choice gains over it, and a training's time."""
        rows = []
        for arm in self.scores:
            own, gain = self.mean(arm), self.gain(arm)
            none = arm == self.choice
            rows.append(
                {
                    "arm": arm, "score": own.mean, "low": own.low, "high": own.high,
                    "gain": None if none else gain.mean,
                    "gain_low": None if none else gain.low,
                    "gain_high": None if none else gain.high,
                    "seconds": self.seconds[arm],
                }
            )  # fmt: skip
        return pa.Table.from_pylist(rows)


def check(
    train: Callable[[Arm, int], float],
    arms: Mapping[str, Arm] | Sequence[str] | Callable[[int], Mapping[str, Arm]],
    *,
    seeds: int = 5,
    store: str | os.PathLike[str] | None = None,
    tick: Tick = lambda arm: None,
) -> Comparison:
    """Trains a selection and its controls again, from the same seeds.

        def train(by, seed):                      # online: an arm is how to choose
            ...                                   # selection = inrun.select.online(..., by=by)
            return accuracy_on_unseen_data        # higher is better

        print(inrun.select.check(train, inrun.select.BY))
        print(inrun.select.check(train_on_ids, offline_selection.arms))   # offline: ids

    Args:
        train: `train(arm, seed)` trains from this seed and returns a score on data that is neither
            trained on nor the validation set of the values; higher is better.
        arms: by name, the first of them the selection and the others its controls: names, what
            `train` takes by name, or a function of the seed that gives it.
        seeds: trainings of each arm, at least 2.
        store: a file for results, one line per training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds or arms, or `train` returned no finite number.
        StoreError: the file is of another question.
    """
    of_seed = [_named(arms, seed) for seed in range(_enough(seeds))]
    if len(of_seed[0]) < 2:
        raise MisuseError("check needs a selection and at least one control: two arms or more.")
    told = {name: _told(arm) for name, arm in of_seed[0].items()}
    question = {"choice": next(iter(told)), "saved": None, "arms": told}
    return _compared(train, of_seed, TrainingResults(store, "selection", question), tick)


def check_pruning(
    pruning: Pruning,
    train: Train,
    *,
    seeds: int = 5,
    store: str | os.PathLike[str] | None = None,
    tick: Tick = lambda arm: None,
) -> Comparison:
    """Trains again on the pruned samples, on as many random ones, and on all.

    Args:
        pruning: from `inrun.prune`.
        train: `train(ids, seed)` trains on these samples from this seed and returns a score on
            data that is neither trained on nor the validation set of the values; higher is better.
        seeds: trainings of each arm, at least 2.
        store: a file for results, one line per training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds, or `train` returned no finite number.
        StoreError: the file is of another pruning.
    """
    of_seed = [_pruned_arms(pruning, seed) for seed in range(_enough(seeds))]
    question = {
        "choice": PRUNED,
        "saved": len(pruning.dropped) / pruning.table.num_rows,
        "arms": ARMS,
        "by": pruning.by,
        "balanced": pruning.balanced,
        "dropped": pruning.dropped,
    }
    return _compared(train, of_seed, TrainingResults(store, "pruning", question), tick)


def stored_comparison(path: Path) -> Comparison:
    """What a check's file holds, of the seeds that every arm was trained from."""
    question, known = read_results(path)
    found = _comparison(question, known)
    if not found.scores[found.choice]:
        raise StoreError(
            f"{path} holds no seed that every arm was trained from yet. Go on with the check: what "
            "the file holds is not trained again."
        )
    return found


def _comparison(question: Mapping[str, Any], known: Mapping[Any, list[float]]) -> Comparison:
    arms = list(question["arms"])
    seeds = [n for arm, n in known if arm == arms[0] and all((name, n) in known for name in arms)]
    found = {arm: [known[arm, seed] for seed in seeds] for arm in arms}
    return Comparison(
        {arm: [score for score, _ in pairs] for arm, pairs in found.items()},
        {arm: _mean_seconds(pairs) for arm, pairs in found.items()},
        question["choice"],
        question["saved"],
    )


def _mean_seconds(pairs: Sequence[Sequence[float]]) -> float:
    return sum(seconds for _, seconds in pairs) / max(1, len(pairs))


def _compared(
    train: Callable[[Any, int], float],
    of_seed: Sequence[Mapping[str, Any]],
    results: TrainingResults,
    tick: Tick,
) -> Comparison:
    """Trains what the results do not hold yet."""
    for seed, arms in enumerate(of_seed):
        for name, arm in arms.items():
            if (name, seed) not in results.known:
                results.add((name, seed), _timed(train, arm, seed))
            tick(name)
    asked = {of: found for of, found in results.known.items() if of[1] < len(of_seed)}
    return _comparison(results.question, asked)


def _enough(seeds: int) -> int:
    if seeds < 2:
        raise MisuseError(f"seeds is {seeds}; an interval needs at least 2 trainings of each arm.")
    return seeds


def _named(arms: Any, seed: int) -> dict[str, Any]:
    if callable(arms):
        return dict(arms(seed))
    return dict(arms) if isinstance(arms, Mapping) else {name: name for name in arms}


def _told(arm: Any) -> Any:
    """What a file can hold of an arm."""
    return arm if isinstance(arm, (str, int, float, list, type(None))) else repr(arm)


def _pruned_arms(pruning: Pruning, seed: int) -> dict[str, list[Any]]:
    """Samples by arm, in the order of ids; the control drops as many of each level."""
    table = pruning.table.sort_by("sample_id")
    ids: list[Any] = table["sample_id"].to_pylist()
    levels = table["level"].to_pylist() if pruning.balanced else [""] * len(ids)
    dropped = np.array(table["dropped"].to_pylist())
    generator, keep = np.random.default_rng(seed), np.ones(len(ids), dtype=bool)
    for level in sorted(set(levels)):
        rows = np.flatnonzero(np.array(levels, dtype=object) == level)
        keep[generator.permutation(rows)[: int(dropped[rows].sum())]] = False
    control = [i for i, stays in zip(ids, keep.tolist(), strict=True) if stays]
    return {ALL: ids, PRUNED: pruning.kept, RANDOM: control}


def _timed(train: Callable[[Any, int], float], arm: Any, seed: int) -> tuple[float, float]:
    """What a training scores, and its seconds."""
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
