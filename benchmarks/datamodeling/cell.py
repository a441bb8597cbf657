"""One run: every method's values, and what trainings without halves of the data say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import inrun
from benchmarks import EXACT
from benchmarks.datamodeling.dattri import dattri_values
from benchmarks.datamodeling.tasks import TASKS
from benchmarks.keyed import Keyed
from inrun.replay import lookahead_between
from inrun.uses import Contents, values_by_method

WEIGHT, TRAININGS = 0.15, 4  # the library's own; found on the seed CHOSEN_ON of the digits
CHOSEN_ON = 0
WEIGHTS = (0.5, 0.05)


@dataclass(frozen=True)
class Setting(Keyed):
    """What is trained, how long, and from where it starts."""

    rate: float
    epochs: int
    seed: int = 0
    task: str = "digits"


class Experiment:
    """A task, and how it is trained."""

    def __init__(self, setting: Setting):
        self.setting, self.task = setting, TASKS[setting.task]()
        first, count = self.task.samples, self.task.queries
        self.x, self.y = self.task.x, self.task.y
        self.asked = range(first, first + count)
        self.each = inrun.Utility(
            self.judge, targets={f"query {i}": self.fetch([i]) for i in self.asked}
        )

    def judge(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss, in double precision."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none").double().mean()

    def terms(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Terms that add up to the training loss."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[1])

    def fetch(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Rows by number."""
        rows = torch.as_tensor(ids)
        return self.x[rows], self.y[rows]

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""
        torch.manual_seed(self.setting.seed)
        model = self.task.build()
        return model, self.task.optimizer(model, self.setting.rate)

    def batches(self) -> Iterator[Tensor]:
        """Each step's ids."""
        generator = torch.Generator().manual_seed(self.setting.seed)
        for _ in range(self.setting.epochs):
            yield from torch.randperm(self.task.samples, generator=generator).split(self.task.batch)

    def record(self) -> inrun.Trajectory:
        """The training, recorded."""
        model, optimizer = self.start()
        batches = list(self.batches())
        recorder = inrun.record(model, optimizer, self.terms, self.fetch, steps=len(batches))
        for ids in batches:
            with recorder.batch(ids):
                self.terms(model, self.fetch(ids)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return recorder.finish()

    def contents(self) -> Contents:
        """Labels of samples and queries."""
        labels = dict(enumerate(self.y[: self.task.samples].tolist()))
        return Contents(labels=labels, query_labels=self.y[self.asked].tolist())


class Values:
    """Tables by method, and the processor time that each took."""

    def __init__(self) -> None:
        self.tables: dict[str, pa.Table] = {}
        self.seconds: dict[str, float] = {}
        self._began = process_time()

    def tick(self, name: str) -> None:
        """The method of that name begins."""
        now = process_time()
        if self.seconds:
            last = next(reversed(self.seconds))
            self.seconds[last] = now - self._began
        self.seconds[name], self._began = 0.0, now


def _on_the_way(experiment: Experiment, run: inrun.Trajectory, values: Values) -> None:
    """Other weights, and the mean of the slopes along the same number of trainings."""
    for weight in WEIGHTS:
        name = f"look-ahead, between, weight {weight:g}"
        values.tick(name)
        values.tables[name] = lookahead_between(run, experiment.each, weight=weight)
    name = f"look-ahead, between, mean of {TRAININGS}"
    values.tick(name)
    singles = [
        lookahead_between(run, experiment.each, trainings=1, seed=seed)
        for seed in range(1, TRAININGS + 1)
    ]
    columns = [n for n in singles[0].column_names if n != "sample_id"]
    means = {n: np.mean([single[n].to_numpy() for single in singles], axis=0) for n in columns}
    values.tables[name] = pa.table({"sample_id": singles[0]["sample_id"]} | means)


def measure(key: str) -> dict[str, Any]:
    """The cell of that name: a setting, or 'dattri: ' and a setting."""
    kind, _, setting = key.rpartition(": ")
    return (by_dattri if kind else by_inrun)(Setting.of(setting))


def by_dattri(setting: Setting) -> dict[str, Any]:
    """The scores of dattri's methods on the same halves, and the seconds that all of them took."""
    experiment = Experiment(setting)
    run, task = experiment.record(), experiment.task
    began = process_time()
    tables = dattri_values(
        run,
        experiment.fetch(range(task.samples)),
        experiment.fetch(experiment.asked),
        experiment.each.targets,
    )
    seconds = process_time() - began
    score = inrun.truth.lds(run, experiment.each, tables, subsets=task.halves)
    scores = {row.pop("method"): row for row in score.table.to_pylist()}
    return {"scores": scores, "seconds": seconds, "ceiling": score.ceiling}


def by_inrun(setting: Setting) -> dict[str, Any]:
    """Every method's score, and what its values and the trainings cost."""
    experiment = Experiment(setting)
    run, values = experiment.record(), Values()
    left = () if experiment.task.finite else ("look-ahead, finite push",)
    contents = experiment.contents()
    names = [n for n in METHODS if n not in left]
    values.tables |= values_by_method(
        run, experiment.each, contents, methods=names, tick=values.tick
    )
    if setting.task == "digits":  # plain SGD has nothing to damp
        values.tick(EXACT)
        values.tables[EXACT] = inrun.lookahead(run, experiment.each, damped=False).values()
    if setting.task == "digits" and setting.seed == CHOSEN_ON:
        _on_the_way(experiment, run, values)
    values.tick("trainings without halves")
    halves = experiment.task.halves
    score = inrun.truth.lds(run, experiment.each, values.tables, subsets=halves)
    values.tick("removals")
    top = inrun.truth.removal_curve(run, experiment.each, values.tables)
    values.tick("end")
    del values.seconds["end"]
    return {
        "scores": {row.pop("method"): row for row in score.table.to_pylist()},
        "ceiling": score.ceiling,
        "removals": top.table.to_pylist(),
        "seconds": values.seconds,
        "steps": len(run.steps),
    }


METHODS = (
    "look-ahead", "look-ahead, finite push", "look-ahead, between", "in-step", "in-step, paid out",
    "TracIn", "gradient dot", "gradient cosine", "gradient norm", "loss", "same class", "random",
)  # fmt: skip
SHOWN = (METHODS[0], EXACT, *METHODS[1:])
