"""Whether a selection is worth it: every arm trained again from the same seeds.

Differences between arms are taken within a seed. A selection is supported where it beats each of
its controls: the 95 % interval of the difference lies above 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from inrun.errors import MisuseError
from inrun.uses._check import Mean, Results, mean_of, timed

Arm = TypeVar("Arm")


@dataclass(frozen=True)
class Comparison:
    """What `inrun.select.check` returns.

    Attributes:
        scores: a number a seed for each arm, as `train` returned them: higher is better.
        seconds: mean time of a training, by arm.
    """

    scores: dict[str, list[float]]
    seconds: dict[str, float]

    def mean(self, arm: str) -> Mean:
        """An arm's mean score and its 95 % interval."""
        return mean_of(self.scores[arm])

    def gain(self, over: str) -> Mean:
        """By how much the first arm beats another, seed by seed."""
        first = next(iter(self.scores.values()))
        return mean_of([a - b for a, b in zip(first, self.scores[over], strict=True)])

    @property
    def supported(self) -> bool:
        """Whether the first arm beats every other."""
        return all(self.gain(arm).low > 0 for arm in list(self.scores)[1:])

    def __str__(self) -> str:
        first, *controls = self.scores
        lines = [f"{arm}: {self.mean(arm):.4g}, {self.seconds[arm]:.3g} s" for arm in self.scores]
        lines += [f"{first} over {arm}: {self.gain(arm):+.4g}" for arm in controls]
        verdict = "beats every control" if self.supported else "is not shown to beat every control"
        return "\n".join([*lines, f"{first} {verdict} (95 % intervals in brackets)"])


def check(
    train: Callable[[Arm, int], float],
    arms: Mapping[str, Arm] | Sequence[str] | Callable[[int], Mapping[str, Arm]],
    *,
    seeds: int = 5,
    store: str | os.PathLike[str] | None = None,
    tick: Callable[[str], None] = lambda arm: None,
) -> Comparison:
    """Trains every arm again, from the same seeds.

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
        store: a file for results, a line a training; what it holds is not trained again.
        tick: called with the arm's name after each training.

    Raises:
        MisuseError: too few seeds or arms, or `train` returned no finite number.
        StoreError: the file is of another question.
    """
    if seeds < 2:
        raise MisuseError(f"seeds is {seeds}; an interval needs at least 2 trainings of each arm.")
    of_seed = [_named(arms, seed) for seed in range(seeds)]
    names = list(of_seed[0])
    if len(names) < 2:
        raise MisuseError("check needs a selection and at least one control: two arms or more.")
    question = {"arms": {name: _told(arm) for name, arm in of_seed[0].items()}}
    results = Results(store, question, "selection")
    for seed, given in enumerate(of_seed):
        for name in names:
            if (name, seed) not in results.known:
                results.add(name, seed, *timed(train, given[name], seed))
            tick(name)
    found = {name: [results.known[name, seed] for seed in range(seeds)] for name in names}
    return Comparison(
        {name: [score for score, _ in pairs] for name, pairs in found.items()},
        {name: float(np.mean([seconds for _, seconds in pairs])) for name, pairs in found.items()},
    )


def _named(arms: Any, seed: int) -> dict[str, Any]:
    if callable(arms):
        return dict(arms(seed))
    return dict(arms) if isinstance(arms, Mapping) else {name: name for name in arms}


def _told(arm: Any) -> Any:
    """What a file can hold of an arm."""
    return arm if isinstance(arm, (str, int, float, list, type(None))) else repr(arm)
