"""One run: sums of values over groups, pair terms, and trainings without each group."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

import inrun
from benchmarks.datamodeling.cell import Experiment, Setting
from inrun.optim import as_rows
from inrun.replay import lookahead_groups, removal_named
from inrun.replay._proxy import perturbation
from inrun.truth import agreement
from inrun.utility import curvature, losses_of

GROUPS, SIZE, JUDGES = 10, 20, 200
KINDS = ("sources", "random")
SUMS: dict[str, dict[str, Any]] = {
    "sum, in-step": {"horizon": 1},
    "sum, look-ahead": {},
    "sum, look-ahead, finite push": {"push": "finite"},
}
JOINT, PAIRED = "group at once", "group at once, with the pair term"


def groups(x: Tensor, kind: str, seed: int) -> list[list[int]]:
    """Disjoint groups of rows; a source holds a random row and those nearest to it."""
    rng = np.random.default_rng(100 + seed)
    left = rng.permutation(len(x)).tolist()
    found = []
    for _ in range(GROUPS):
        if kind == "sources":
            distance = (x[left] - x[left[0]]).square().sum(1)
            chosen = [left[place] for place in distance.argsort()[:SIZE].tolist()]
        else:
            chosen = left[:SIZE]
        found.append(chosen)
        left = [row for row in left if row not in set(chosen)]
    return found


def measure(key: str) -> dict[str, Any]:
    """By kind of group and way: agreement with training again, and the seconds of each way."""
    setting = Setting.of(key)
    experiment = Experiment(setting)
    first = experiment.task.samples
    mean = experiment.fetch(range(first, first + JUDGES))
    targets = {"mean": mean, **experiment.each.batches}
    weights = {name: float(name == "mean") for name in targets}
    utility = inrun.Utility(experiment.judge, targets=targets, weights=weights)
    run = experiment.record()
    began = process_time()
    values, seconds = {}, {}
    for way, how in SUMS.items():
        values[way] = inrun.lookahead(run, utility, **how).values()
        seconds[way], began = process_time() - began, process_time()
    found: dict[str, Any] = {}
    for kind in KINDS:
        gone = groups(experiment.x[:first], kind, setting.seed)
        said = {way: _sums(table, gone, utility.targets) for way, table in values.items()}
        began = process_time()
        table = lookahead_groups(run, utility, {str(n): group for n, group in enumerate(gone)})
        seconds[f"{JOINT}: {kind}"], began = process_time() - began, process_time()
        said[JOINT] = np.stack([table[name].to_numpy() for name in utility.targets], 1)
        said[PAIRED] = said[JOINT] + pair_terms(run, utility, gone)
        seconds[f"pair term: {kind}"] = process_time() - began
        truth = _without(run, utility, gone)
        found[kind] = {way: _judged(array, truth) for way, array in said.items()}
        found[kind]["truth"] = truth[:, 0].tolist()
    return {"found": found, "seconds": seconds}


def _sums(table: pa.Table, gone: list[list[int]], names: Sequence[str]) -> np.ndarray:
    """(groups, targets): the sums over each group's samples."""
    place = {who: row for row, who in enumerate(table["sample_id"].to_pylist())}
    columns = np.stack([table[name].to_numpy() for name in names], 1)
    return np.stack([columns[[place[who] for who in group]].sum(0) for group in gone])


def pair_terms(run: inrun.Trajectory, utility: inrun.Utility, gone: list[list[int]]) -> np.ndarray:
    """(groups, targets): 1/2 d^T H d, with d the change of the last weights to first order.

    One sweep forward carries d for all groups side by side; H is the loss's curvature at the end.
    """
    group_of = {i: g for g, ids in enumerate(gone) for i in ids}
    member = torch.eye(len(gone) + 1, len(gone), dtype=torch.float64)  # the last row: in none

    def mixture(ids: Any) -> Tensor:
        return member[[group_of.get(who, len(gone)) for who in ids]]

    delta = perturbation(run, mixture, removal_named("renormalise"))
    model, found = run.finished(), []
    for g in range(len(gone)):
        along = {name: part[g] for name, part in delta.items()}
        curved = curvature(utility, model, run.replica.parameters, along)
        forms = [as_rows(curved[name] * d).sum(1).double() for name, d in along.items()]
        found.append(torch.stack(forms).sum(0) / 2)
    return torch.stack(found).detach().numpy()


def _without(run: inrun.Trajectory, utility: inrun.Utility, gone: list[list[int]]) -> np.ndarray:
    """(groups, targets): how far each loss ends higher when the group was never there."""
    before = losses_of(utility, run.finished())
    after = [losses_of(utility, run.retrain(group)) for group in gone]
    return (torch.stack(after) - before).detach().numpy()


def _judged(said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of the mean loss, the first column; `each` is Spearman's mean over single queries."""
    own = agreement(said[:, 0], truth[:, 0])
    each = [agreement(a, b).spearman for a, b in zip(said.T[1:], truth.T[1:], strict=True)]
    return own._asdict() | {"each": float(np.nanmean(each))}
