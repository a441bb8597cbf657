"""One cell: a recorded training run, every method's values, and the truth by retraining."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import inrun
from benchmarks import EXACT
from benchmarks.influence.models import TASKS
from benchmarks.keyed import Keyed
from benchmarks.results_file import RESULTS
from inrun.replay import (
    KINK_WIDTH,
    Lookahead,
    Method,
    as_sgd,
    looked_ahead,
    push_named,
    removal_named,
    tracin,
    windows,
)

NOISE = 1e-5
DECAY = 0.01
QUERIES = 10
CARRY = 40

# one sweep for every query is dear; these are asked query by query
JUDGED_EACH = (
    EXACT, "look-ahead, finite push", "look-ahead, finite push, kinks",
    "SGD dynamics",
)  # fmt: skip

PUBLISHED_FRAME = (
    EXACT, "look-ahead, finite push", "SGD dynamics", "TracIn, 5 states",
    "one step",
)  # fmt: skip

QUERIED = (
    EXACT, "look-ahead", "look-ahead, finite push",
    "look-ahead, carried push",
)  # fmt: skip

Values = np.ndarray


@dataclass(frozen=True)
class Setting(Keyed):
    """How a run is trained. `steps` 0 is one epoch; `noise` is what the start is moved by."""

    task: str
    rate: float
    seed: int = 0
    steps: int = 0
    noise: float = 0.0


class Experiment:
    """A setting, ready to be trained."""

    def __init__(self, setting: Setting, decay: float = DECAY):
        self.setting, self.task, self.decay = setting, TASKS[setting.task](), decay
        order = torch.randperm(
            self.task.samples, generator=torch.Generator().manual_seed(setting.seed)
        )
        batches = order.split(self.task.batch)
        self.batches = batches[: setting.steps] if setting.steps else batches
        visited = torch.cat(self.batches)
        shuffled = torch.randperm(len(visited), generator=torch.Generator().manual_seed(100))
        self.left_out: list[int] = visited[shuffled][: self.task.left_out].tolist()
        first = self.task.samples
        rows = torch.arange(first, first + self.task.queries)
        self.mean = inrun.Utility(self.task.judge, self.task.fetch(rows))
        self.each = inrun.Utility(
            self.task.judge,
            targets={
                f"query {i}": self.task.fetch(rows[i : i + 1]) for i in range(self.task.judged_each)
            },
        )

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Model and optimizer before the first step."""
        torch.manual_seed(self.setting.seed)
        model = self.task.build()
        if self.setting.noise:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(self.setting.noise * torch.randn(p.shape, generator=generator))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.setting.rate, betas=self.task.betas,
            weight_decay=self.decay,
        )  # fmt: skip
        return model, optimizer

    def train(self, folder: Path | None = None, *, record: bool = True) -> inrun.Trajectory | None:
        """One training run, recorded or plain."""
        model, optimizer = self.start()
        recorder = None
        if record:
            recorder = inrun.record(
                model, optimizer, self.task.losses, self.task.fetch, folder,
                clip_norm=self.task.clip, steps=len(self.batches),
            )  # fmt: skip
        for ids in self.batches:
            batch = self.task.fetch(ids)
            with recorder.batch(ids) if recorder else _nothing():
                self.task.terms(model, batch).mean().backward()
            if self.task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.task.clip)
            optimizer.step()
            optimizer.zero_grad()
        return recorder.finish() if recorder else None

    def methods(self, run: inrun.Trajectory) -> dict[str, Callable[[inrun.Utility], Lookahead]]:
        """Every method without damping, by the name that the page shows."""

        def ahead(**how: Any) -> Callable[[inrun.Utility], Lookahead]:
            return lambda utility: inrun.lookahead(run, utility, damped=False, **how)

        def compared(push: str, **how: Any) -> Callable[[inrun.Utility], Lookahead]:
            method = self.method(run, push, 0, **how)
            return lambda utility: looked_ahead(run, utility, method)

        finite = {"push": "finite", "samples": self.left_out, "carry": 0}
        return {
            EXACT: ahead(),
            "look-ahead, finite push": ahead(**finite),
            "look-ahead, finite push, kinks": compared("finite", kink_width=KINK_WIDTH),
            "look-ahead, momentum only": ahead(curvature=False),
            "SGD dynamics": compared("tangent", reading=as_sgd),
            "TracIn, 5 states": lambda utility: tracin(run, utility, 5),
            "one step": ahead(horizon=1),
        }

    def damped_methods(
        self, run: inrun.Trajectory
    ) -> dict[str, Callable[[inrun.Utility], Lookahead]]:
        """Look-ahead as a user gets it; the finite push with moments carried through the rule."""

        def ahead(kink_width: float) -> Callable[[inrun.Utility], Lookahead]:
            method = self.method(run, "finite", CARRY, kink_width=kink_width, damped=True)
            return lambda utility: looked_ahead(run, utility, method)

        return {
            "look-ahead": lambda utility: inrun.lookahead(run, utility),
            "look-ahead, carried push": ahead(0.0),
            "look-ahead, carried push, kinks": ahead(KINK_WIDTH),
        }

    def method(self, run: inrun.Trajectory, push: str, carry: int, **how: Any) -> Method:
        """Look-ahead over the whole run, with what `inrun.lookahead` does not offer."""
        way = push_named(push, self.left_out, carry)
        return Method(windows(None, len(run.steps)), removal_named("renormalise"), way, **how)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _columns(table: Any, order: list[int], utility: inrun.Utility) -> Values:
    """(samples, targets) in this order of samples."""
    names = utility.targets if len(utility.targets) > 1 else ("value",)
    place = {who: i for i, who in enumerate(table["sample_id"].to_pylist())}
    rows = [place[who] for who in order]
    return np.stack([table[name].to_numpy()[rows] for name in names], 1)


def _digits(values: Values) -> list[float]:
    """(samples, 1) as numbers that a file can hold without boasting."""
    return [float(f"{x:.5g}") for x in values[:, 0]]


def rank_correlation(a: Values, b: Values) -> float:
    """Spearman, averaged over targets; both (samples, targets)."""
    return float(np.nanmean([spearmanr(x, y)[0] for x, y in zip(a.T, b.T, strict=True)]))


def agreement(found: Values, truth: Values) -> dict[str, float]:
    """How values agree with the truth, both (samples, 1)."""
    a, b = found[:, 0], truth[:, 0]
    return {
        "spearman": rank_correlation(found, truth),
        "pearson": float(np.corrcoef(a, b)[0, 1]),
        "relative_error": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
    }


def fidelity(setting: Setting) -> dict[str, Any]:
    """Every method against the truth, and the truth against itself."""
    experiment = Experiment(setting)
    run = experiment.train()
    again = Experiment(Setting(setting.task, setting.rate, setting.seed, noise=NOISE))
    twin = again.train()
    assert run is not None
    assert twin is not None
    order, mean, each = experiment.left_out, experiment.mean, experiment.each
    both = inrun.Utility(
        experiment.task.judge, targets={"mean": mean.batches["validation"], **each.batches}
    )
    truth, other = (_columns(inrun.truth.retrain(r, both, order), order, both) for r in (run, twin))
    found: dict[str, Any] = {}
    for name, method in experiment.methods(run).items():
        whole = _columns(method(mean).values(), order, mean)
        both_truths = (truth[:, :1] + other[:, :1]) / 2
        found[name] = agreement(whole, truth[:, :1]) | {
            "spearman_two_truths": rank_correlation(whole, both_truths),
            "values": _digits(whole),
        }
        if name in JUDGED_EACH:
            parts = _columns(method(each).values(), order, each)
            found[name]["spearman_each"] = rank_correlation(parts, truth[:, 1:])
    return {
        "methods": found,
        "truth_again": agreement(other[:, :1], truth[:, :1])
        | {"spearman_each": rank_correlation(other[:, 1:], truth[:, 1:])},
        "truth": _digits(truth[:, :1]),
        "steps": len(run.steps),
    }


def damped(setting: Setting) -> dict[str, Any]:
    """Damped look-ahead of both pushes, against the truth of the setting's fidelity cell."""
    experiment = Experiment(setting)
    run = experiment.train()
    assert run is not None
    truth = _stored_truth(setting)
    order, found = experiment.left_out, {}
    for name, method in experiment.damped_methods(run).items():
        values = _columns(method(experiment.mean).values(), order, experiment.mean)
        found[name] = agreement(values, truth) | {"values": _digits(values)}
    return {"methods": found}


def query_by_query(setting: Setting) -> dict[str, Any]:
    """Every push against the truth of single queries: mean rank correlation over them."""
    experiment = Experiment(setting)
    run = experiment.train()
    assert run is not None
    named = list(experiment.each.batches.items())[:QUERIES]
    each = inrun.Utility(experiment.task.judge, targets=dict(named))
    order = experiment.left_out
    truth = _columns(inrun.truth.retrain(run, each, order), order, each)
    every = experiment.methods(run) | experiment.damped_methods(run)
    found = {
        name: rank_correlation(_columns(every[name](each).values(), order, each), truth)
        for name in QUERIED
    }
    return {"methods": found, "queries": len(named)}


def published_frame(setting: Setting) -> dict[str, Any]:
    """As the published fidelity experiment is judged, query by query and without weight decay.

    A sample's last occurrence is removed, which in one epoch is its only one; Spearman over the
    removed samples is taken for each validation sample alone, and then averaged over them.
    """
    experiment = Experiment(setting, decay=0.0)
    run = experiment.train()
    assert run is not None
    order, each = experiment.left_out, experiment.each
    truth = _columns(inrun.truth.retrain(run, each, order), order, each)
    methods = experiment.methods(run)
    return {
        name: rank_correlation(_columns(methods[name](each).values(), order, each), truth)
        for name in PUBLISHED_FRAME
    } | {"queries": len(each.targets), "left_out": len(order)}


def _stored_truth(setting: Setting) -> Values:
    """(samples, 1), of the setting's fidelity cell."""
    stored = json.loads((RESULTS / "influence.json").read_text())["cells"]
    return np.array(stored[f"fidelity: {setting.key}"]["result"]["truth"])[:, None]


def decay_truth(setting: Setting) -> dict[str, Any]:
    """The truth of the same training without weight decay, beside that of the fidelity cell."""
    experiment = Experiment(setting, decay=0.0)
    run = experiment.train()
    assert run is not None
    order, mean = experiment.left_out, experiment.mean
    truth = _columns(inrun.truth.retrain(run, mean, order), order, mean)
    return agreement(truth, _stored_truth(setting)) | {"truth": _digits(truth)}


def measured_error(setting: Setting) -> dict[str, Any]:
    """How far the carried and the tangent push are from the truth, by exact slopes."""
    experiment = Experiment(setting)
    run = experiment.train()
    assert run is not None
    order, mean = experiment.left_out[:100], experiment.mean
    truth = _columns(inrun.truth.retrain(run, mean, order), order, mean)
    result = inrun.lookahead(run, mean, damped=False)
    carried = inrun.lookahead(run, mean, push="finite", samples=order, damped=False)
    return {
        "carried": agreement(_columns(carried.values(), order, mean), truth),
        "tangent": agreement(_columns(result.values(), order, mean), truth),
    }


def proxy(setting: Setting) -> dict[str, Any]:
    """The error proxy of the run alone."""
    experiment = Experiment(setting)
    run = experiment.train()
    assert run is not None
    return asdict(inrun.lookahead(run, experiment.mean).error_proxy())
