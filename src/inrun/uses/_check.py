"""Whether a choice of samples is worth it: every arm trained again from the same seeds.

An arm is what is trained on: the choice, and its controls. `_comparison` says what follows.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inrun.errors import MisuseError, StoreError
from inrun.truth import TrainingResults, read_results
from inrun.uses._comparison import ALL, ARMS, PRUNED, RANDOM, Comparison
from inrun.uses._prune import Pruning

Arm = TypeVar("Arm")
Train = Callable[[list[Any], int], float]
Tick = Callable[[str], None]
PLANNED = ("planned", -1)  # stands in a file of results for how many trainings were planned


def check(
    train: Callable[[Arm, int], float],
    arms: Mapping[str, Arm] | Sequence[str] | Callable[[int], Mapping[str, Arm]],
    *,
    seeds: int = 5,
    at_most: int | None = None,
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
        seeds: trainings of each arm that are planned, at least 2.
        at_most: where they do not decide, train on, looking after each, until it is decided or
            there are so many.
        store: a file for results, one line per training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds or arms, or `train` returned no finite number.
        StoreError: the file is of another question.
    """
    most = _most(seeds, at_most)
    told = {name: _told(arm) for name, arm in _named(arms, 0).items()}
    if len(told) < 2:
        raise MisuseError("check needs a selection and at least one control: two arms or more.")
    question = {"choice": next(iter(told)), "saved": None, "arms": told}
    results = TrainingResults(store, "selection", question)
    return _compared(train, lambda seed: _named(arms, seed), results, tick, (seeds, most))


def check_pruning(
    pruning: Pruning,
    train: Train,
    *,
    seeds: int = 5,
    at_most: int | None = None,
    store: str | os.PathLike[str] | None = None,
    tick: Tick = lambda arm: None,
) -> Comparison:
    """Trains again on the pruned samples, on as many random ones, and on all.

    Args:
        pruning: from `inrun.prune`.
        train: `train(ids, seed)` trains on these samples from this seed and returns a score on
            data that is neither trained on nor the validation set of the values; higher is better.
        seeds: trainings of each arm that are planned, at least 2.
        at_most: where they do not decide, train on, looking after each, until it is decided or
            there are so many.
        store: a file for results, one line per training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds, or `train` returned no finite number.
        StoreError: the file is of another pruning.
    """
    most = _most(seeds, at_most)
    question = {
        "choice": PRUNED,
        "saved": len(pruning.dropped) / pruning.table.num_rows,
        "arms": ARMS,
        "by": pruning.by,
        "balanced": pruning.balanced,
        "dropped": pruning.dropped,
    }
    results = TrainingResults(store, "pruning", question)
    return _compared(train, lambda seed: _pruned_arms(pruning, seed), results, tick, (seeds, most))


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
        int(known[PLANNED][0]) if PLANNED in known else None,
    )


def _mean_seconds(pairs: Sequence[Sequence[float]]) -> float:
    return sum(seconds for _, seconds in pairs) / max(1, len(pairs))


def _compared(
    train: Callable[[Any, int], float],
    arms_of: Callable[[int], Mapping[str, Any]],
    results: TrainingResults,
    tick: Tick,
    seeds: tuple[int, int],
) -> Comparison:
    """Trains what the results do not hold yet, of the planned and at most so many seeds."""
    planned, most = seeds
    if PLANNED not in results.known:  # a file of an earlier version was planned as it stands
        held = _comparison(results.question, results.known).scores[results.question["choice"]]
        results.add(PLANNED, [len(held) or planned])
    asked: dict[Any, list[float]] = {PLANNED: results.known[PLANNED]}
    for seed in range(most):
        if seed >= planned and _comparison(results.question, asked).decided:
            break
        for name, arm in arms_of(seed).items():
            if (name, seed) not in results.known:
                results.add((name, seed), _timed(train, arm, seed))
            asked[name, seed] = results.known[name, seed]
            tick(name)
    return _comparison(results.question, asked)


def _most(seeds: int, at_most: int | None) -> int:
    if seeds < 2:
        raise MisuseError(f"seeds is {seeds}; an interval needs at least 2 trainings of each arm.")
    if at_most is not None and at_most < seeds:
        raise MisuseError(
            f"at_most is {at_most}, below the {seeds} trainings of each arm that are planned "
            "(seeds). Pass a larger number, or leave it out."
        )
    return at_most or seeds


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
