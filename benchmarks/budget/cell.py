"""One cell: the same training with every way to spend less on attribution, step by step in turn.

A budget looks at the time from step to step, and so is trained by itself, between two plain
trainings.

Letters: N samples.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

import inrun
from benchmarks.classification import tasks
from benchmarks.classification.evidence import batches, start
from benchmarks.classification.tasks import Split, split
from benchmarks.payout.cell import NOISE, Setting
from inrun.errors import InRunWarning

Scoring = inrun.EveryStep | inrun.Sampled | inrun.Window | inrun.Budget
PLAIN, WHOLE = "plain training", "every step, all validation rows"
STEADY = 20  # steps that are not timed: the first ones are smoothed


@dataclass(frozen=True)
class Way:
    """One way to attach."""

    scoring: Scoring = field(default_factory=inrun.EveryStep)
    capture: str = "hold"


WAYS = {
    WHOLE: Way(),
    **{f"Sampled({n})": Way(inrun.Sampled(n)) for n in (2, 5, 10, 20)},
    **{f"validation_parts={k}": Way(inrun.EveryStep(validation_parts=k)) for k in (2, 5, 10)},
    **{
        f"Sampled({n}, validation_parts=10)": Way(inrun.Sampled(n, validation_parts=10))
        for n in (2, 5)
    },
    **{f"validation_every={n}": Way(inrun.EveryStep(validation_every=n)) for n in (2, 5)},
    "Window(5)": Way(inrun.Window(5)),
    "Window('auto')": Way(inrun.Window()),
    "stream": Way(capture="stream"),
    **{f"Budget({x})": Way(inrun.Budget(x)) for x in (0.05, 0.2)},
}


class Run:
    """One training, attributed in one way or not at all."""

    def __init__(self, data: Split, seed: int, way: Way | None):
        self.data = data
        self.model, self.optimizer = start(data, seed)
        self.attribution = None
        if way is not None:
            utility = inrun.Utility(tasks.weighted_loss, data.whole)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InRunWarning)  # what is stale is what is measured
                self.attribution = inrun.attach(
                    self.model,
                    self.optimizer,
                    utility,
                    scoring=way.scoring,
                    options=inrun.Options(capture=way.capture, progress=False),
                )
        self.seconds: list[float] = []
        self.scored: list[bool] = []

    def step(self, ids: Tensor) -> None:
        """One optimizer step, timed."""
        began = time.perf_counter()
        if self.attribution is None:
            self._pass(ids)
        else:
            with self.attribution.batch(ids.tolist()):
                self._pass(ids)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - began)
        told = 0.0 if self.attribution is None else self.attribution.sampling["scored"]
        self.scored.append(told > sum(self.scored))

    def _pass(self, ids: Tensor) -> None:
        tasks.loss_fn(self.model, self.data.fetch(ids)).backward()

    def totals(self) -> np.ndarray:
        """(N,): 0 for samples that were in no scored step."""
        found = np.zeros(self.data.recipe.training)
        if self.attribution is not None:
            self.attribution.detach()
            table = self.attribution.values()
            found[table["sample_id"].to_numpy()] = table["value"].to_numpy()
        return found


def measure(key: str) -> dict[str, Any]:
    """By way: agreement of the totals with those of every step, and time over plain training."""
    setting = Setting.of(key)
    data = split(setting.task, NOISE, setting.seed)
    runs = {PLAIN: Run(data, setting.seed, None)}
    runs |= {name: Run(data, setting.seed, way) for name, way in WAYS.items()}
    order = list(batches(data, torch.arange(data.recipe.training), setting.seed))
    alone = [name for name in runs if name.startswith("Budget")]
    plain = {name: [runs[PLAIN]] for name in runs}
    for number, ids in enumerate(order):
        turn = [run for name, run in runs.items() if name not in alone]
        for run in turn if number % 2 else reversed(turn):
            run.step(ids)
    for name in alone:
        plain[name] = [Run(data, setting.seed, None) for _ in range(2)]
        for run in (plain[name][0], runs[name], plain[name][1]):
            for ids in order:
                run.step(ids)
    whole = runs[WHOLE].totals()
    wrong = data.wrong.numpy()
    number = 2 * data.labels.numpy() + wrong
    groups = np.eye(2 * len(data.names))[number]  # (N, groups): label, and whether it is wrong
    result: dict[str, Any] = {"steps": len(runs[PLAIN].seconds)}
    for name, run in runs.items():
        if run.attribution is None:
            continue
        totals, sampling = run.totals(), run.attribution.sampling
        result[name] = {
            "pearson": round(float(pearsonr(totals, whole).statistic), 4),
            "spearman": round(float(spearmanr(totals, whole).statistic), 4),
            "groups": round(float(pearsonr(totals @ groups, whole @ groups).statistic), 4),
            "auc": round(float(roc_auc_score(wrong, -totals)), 4),
            "scored": round(sampling["scored"] / sampling["steps"], 4),
            "relative_error": round(sampling["relative_error"], 4),
            "overhead": round(_mean_step([run]) / _mean_step(plain[name]) - 1, 4),
            "choice": sampling.get("choice", ""),
        }
    return result


def _mean_step(runs: list[Run]) -> float:
    """Mean time of a step, without outliers.

    Scored steps are few and long, so that a median would not see them. What is cut, at ten times
    the median of its kind, are steps in which the machine did something else.
    """
    times = np.concatenate([np.array(run.seconds[STEADY:]) for run in runs])
    scored = np.concatenate([np.array(run.scored[STEADY:], dtype=bool) for run in runs])
    kinds = [times[scored == kind] for kind in (False, True)]
    total = sum(float(np.minimum(t, 10 * np.median(t)).sum()) for t in kinds if len(t))
    return total / len(times)
