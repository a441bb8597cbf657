"""What taking whole groups of samples out (a source, a class) does to the loss.

A group's value is no sum over its samples where they matter together. Two things bend:

- Each step. An element that only this group has touched stands still without it, but not without
  any one of its samples. So a group's rows in a block are taken out at once, through the real rule
  (`JointPush`), and what that leaves is carried on by the sweep.
- The loss itself. With d the change of the last weights to first order, carried forward through the
  run for all groups side by side, its second order is the pair term 1/2 d^T H d, H the loss's
  curvature: one more curvature product for each group.

That the training would have taken other turns without the group is in neither. Letters: G groups, B
rows of a block, K targets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.optim import as_rows
from inrun.replay._folder import Ids
from inrun.replay._proxy import perturbation
from inrun.replay._removal import JointPush, removal_named
from inrun.replay._sweep import Method, sweep, windows
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, curvature


def lookahead_groups(
    run: Trajectory,
    utility: Utility,
    groups: Mapping[str, Collection[Any]],
    *,
    removal: str = "renormalise",
    carry: int = 40,
) -> pa.Table:
    """What the loss would end at without each group, less what it ended at with all.

    One sweep backward, in which each group's part of each block takes a backward pass of its own,
    and one forward.

    Args:
        run: a recorded run.
        utility: the validation loss.
        groups: by name, the ids of its samples; no sample is in two.
        removal: see `inrun.lookahead`.
        carry: see `inrun.lookahead`.

    Returns:
        `group`, `samples`, `value` in units of the validation loss (positive: the loss is higher
        without the group), of which `pair` is the pair term, and with several targets one column
        each; in the order of `groups`.

    Raises:
        MisuseError: no group, an empty one, a sample that is in two or was never visited.
    """
    group_of = _group_of(run, groups)
    meaning, names = removal_named(removal), list(groups)
    values = np.zeros((len(names), len(utility.targets)))
    method = Method(windows(None, len(run.steps)), meaning, JointPush(group_of, carry))
    for found in sweep(run, utility, method):
        for block, of_block in zip(found.step.blocks, found.values, strict=True):
            for who, value in zip(block.ids, of_block.numpy(), strict=True):
                if not np.isnan(value).any():
                    values[group_of[who]] += value
    pairs = _pair_terms(run, utility, group_of, len(names), meaning)
    values += pairs
    weights = np.asarray(utility.weights)
    columns: dict[str, Any] = {
        "group": names,
        "samples": [len(groups[name]) for name in names],
        "value": values @ weights,
        "pair": pairs @ weights,
    }
    if len(utility.targets) > 1:
        columns |= {target: values[:, k] for k, target in enumerate(utility.targets)}
    return pa.table(columns)


def _group_of(run: Trajectory, groups: Mapping[str, Collection[Any]]) -> dict[Any, int]:
    """By sample id, the number of its group."""
    visited, found = set(run.sample_ids()), dict[Any, int]()
    for number, (name, ids) in enumerate(groups.items()):
        strangers = set(ids) - visited
        if strangers or not ids:
            what = f"the sample {min(map(repr, strangers))}" if strangers else "no sample at all"
            raise MisuseError(f"The group {name!r} names {what}, which the run never visited.")
        for who in ids:
            if who in found:
                raise MisuseError(f"The sample {who!r} is in the group {name!r} and in another.")
            found[who] = number
    if not found:
        raise MisuseError("groups names no group.")
    return found


def _pair_terms(
    run: Trajectory, utility: Utility, group_of: Mapping[Any, int], groups: int, removal: Any
) -> np.ndarray:
    """(G, K) float64."""
    member = torch.eye(groups + 1, groups, dtype=torch.float64)  # the last row: in none of them

    def mixture(ids: Ids) -> Tensor:
        return member[[group_of.get(who, groups) for who in ids]]

    delta = perturbation(run, mixture, removal)
    model, found = run.finished(), []
    for g in range(groups):
        along = {name: part[g] for name, part in delta.items()}
        curved = curvature(utility, model, run.replica.parameters, along)
        forms = [as_rows(curved[name] * d).sum(1).double().cpu() for name, d in along.items()]
        found.append(torch.stack(forms).sum(0) / 2)
    return torch.stack(found).detach().numpy()
