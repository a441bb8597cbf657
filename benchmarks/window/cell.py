"""One cell: a training in windows of every length, beside the same one with every step scored.

Steps that are scored exactly in both, the first ten and those of audited windows, are in no number
of agreement; they are in the totals that wrong labels are looked for by, as a user has them.
Letters: N samples.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

import inrun
from benchmarks.classification.evidence import trained as trained_again
from benchmarks.classification.tasks import Split, accuracy
from benchmarks.pruning.rankings import kept
from benchmarks.window.tasks import LABELLED, Setting, Task, task_of
from inrun.errors import InRunWarning

EVERY, RANDOM = "every", "random"
LENGTHS = ("1", "2", "5", "10", "20", "auto")
PRUNED = ("cnn-digits", "cnn-mnist")
DROPS = (0.1, 0.2, 0.3)
EXACT = inrun.Window().exact  # first steps, which are scored one by one


def lengths_of(setting: Setting) -> tuple[str, ...]:
    """The windows that a setting is trained in: fewer of large models and of further seeds."""
    if setting.task == "smollm":
        return ("auto",)
    if setting.task == "wide":
        return "5", "auto"
    return ("5", "10", "auto") if setting.task in LABELLED and setting.seed else LENGTHS


class Run(NamedTuple):
    """One training: its visits in their order, steps in windows, these windows, its weights."""

    visits: pa.Table
    windowed: np.ndarray
    windows: list[dict[str, float]]
    digest: str

    def totals(self, samples: int) -> np.ndarray:
        """(N,), of ids 0 to N-1."""
        ids, values = (self.visits[name].to_numpy() for name in ("sample_id", "value"))
        return np.bincount(ids, values, samples)


def scoring_of(steps: str) -> inrun.EveryStep | inrun.Window:
    """What `attach` is given."""
    if steps == EVERY:
        return inrun.EveryStep()
    return inrun.Window("auto" if steps == "auto" else int(steps))


def trained(task: Task, steps: str) -> Run:
    """A whole training; what it attributed."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", InRunWarning)  # windows that turned are what is measured
        attribution = inrun.attach(
            task.model, task.optimizer, task.utility, scoring=scoring_of(steps),
            store=Path(folder) / "run", options=inrun.Options(progress=False),
        )  # fmt: skip
        (group,) = task.optimizer.param_groups
        rate = group["lr"]
        for number, ids in enumerate(task.order):
            if task.factors:
                group["lr"] = rate * task.factors[number]
            with attribution.batch(ids.tolist()):
                task.loss(task.model, task.fetch(ids)).backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(group["params"], task.clip)
            task.optimizer.step()
            task.optimizer.zero_grad()
        attribution.detach()
        visits = attribution.visits().sort_by([("step", "ascending"), ("sample_id", "ascending")])
        ledger = attribution.ledger()
    how = np.array(ledger["estimator"].to_pylist())
    return Run(
        visits, np.unique(ledger["step"].to_numpy()[how == "window"]), attribution.windows,
        _digest(task.model),
    )  # fmt: skip


def _digest(model: nn.Module) -> str:
    """Of all bits of what was trained."""
    found = hashlib.sha256()
    for p in model.parameters():
        if p.requires_grad:
            found.update(p.detach().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def compared(found: Run, exact: Run, steps: np.ndarray) -> dict[str, Any]:
    """Agreement in some of the steps, and what was told of the windows that reach into them."""
    columns = ("step", "sample_id")
    if any(not found.visits[name].equals(exact.visits[name]) for name in columns):
        raise ValueError("both trainings visit the same samples")
    step, ids = (exact.visits[name].to_numpy() for name in columns)
    chosen = np.isin(step, steps)
    visits = [run.visits["value"].to_numpy()[chosen] for run in (found, exact)]
    totals = [np.bincount(ids[chosen], part)[np.unique(ids[chosen])] for part in visits]
    told = [w for w in found.windows if w["first"] + w["steps"] > steps[0]]
    told = [w for w in told if w["first"] <= steps[-1]]
    return {
        **agreement("", *totals),
        **agreement("visits_", *visits),
        "sum_ratio": float(totals[0].sum() / totals[1].sum()),
        "steps": float(np.mean([w["steps"] for w in told])),
        "cosine": float(np.mean([w["cosine"] for w in told])),
        "captured": float(np.mean([w["captured"] for w in told])),
    }


def agreement(name: str, found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """R and Spearman, with and without the 1 % largest exact values."""
    small = np.abs(exact) <= np.quantile(np.abs(exact), 0.99)
    return {
        f"{name}pearson": float(np.corrcoef(found, exact)[0, 1]),
        f"{name}pearson_trimmed": float(np.corrcoef(found[small], exact[small])[0, 1]),
        f"{name}spearman": float(spearmanr(found, exact)[0]),
        f"{name}spearman_trimmed": float(spearmanr(found[small], exact[small])[0]),
    }


def measure(key: str) -> dict[str, Any]:
    """A cell by its name."""
    setting = Setting.of(key)
    return measured(setting, lambda: task_of(setting))


def measured(setting: Setting, start: Callable[[], Task]) -> dict[str, Any]:
    """A cell, of a training that `start` gives anew."""
    arms = lengths_of(setting)
    runs = {name: trained(start(), name) for name in (EVERY, *arms)}
    exact, chosen = runs[EVERY], start().split
    thirds = np.array_split(np.unique(exact.visits["step"].to_numpy())[EXACT:], 3)
    result: dict[str, Any] = {
        "same_weights": all(run.digest == exact.digest for run in runs.values()), "arms": {}
    }  # fmt: skip
    for name in arms:
        found = runs[name]
        parts = [found.windowed, *(np.intersect1d(found.windowed, third) for third in thirds)]
        whole, *rest = (compared(found, exact, part) for part in parts)
        lengths = [int(w["steps"]) for w in found.windows] if name == "auto" else []
        result["arms"][name] = {"whole": whole, "thirds": rest, "lengths": lengths}
    if chosen is not None:
        totals = {name: run.totals(chosen.recipe.training) for name, run in runs.items()}
        wrong = chosen.wrong.numpy()
        result["auc"] = {name: float(roc_auc_score(wrong, -t)) for name, t in totals.items()}
        if setting.task in PRUNED:
            ranked = {name: -totals[name] for name in (EVERY, "10", "auto")}
            result["pruned"] = _pruned(chosen, ranked, setting.seed)
    return result


def _pruned(data: Split, ranked: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Test accuracy after training again without the highest, by ranking and dropped share."""
    labels = data.labels.numpy()

    def scored(score: np.ndarray, share: float) -> float:
        rows = torch.as_tensor(kept(score, share, labels))
        return accuracy(trained_again(data, rows, 1000 + seed), data.test)

    chance = np.random.default_rng(seed).random(len(labels))
    found = {
        name: {str(share): scored(score, share) for share in DROPS}
        for name, score in ({RANDOM: chance} | ranked).items()
    }
    return {"all": scored(chance, 0.0), **found}
