"""Look-ahead for removals of many samples: whole groups, and a large share of all.

A group's value is no sum over its samples where they matter together: an element that only this
group has touched stands still without it, but not without any one of its samples. So a group's rows
in a block are taken out at once, through the real rule (`JointPush`), and what that leaves is
carried on by the sweep. That training would have taken other turns after a removal is not in it.

Look-ahead is the slope of the final loss in a sample's weight, where all samples weigh 1. A
training without half of them is far from there. On the way to it the loss is the integral of slopes
along weights that fall from 1 to 0, and what a sum of values can say best is their mean over such
ways. So the run is trained again with the weights of a random share lowered, the rest as they are,
several times, and the slopes along these trainings are taken together. With s_i a row's part of its
block's mean and omega_i its weight, the block's loss and a row's part of its mean are

    sum_i omega_i s_i l_i / sum_j omega_j s_j,    f_i = omega_i s_i / sum_j omega_j s_j

and what taking the row from weight 1 to 0 does to the gradient, the others as they are, is what
taking it from omega_i to 0 does, over f_i + omega_i (1 - f_i).

Single slopes explode where an element's second moment is next to nothing, in some trainings and not
in others, so that a sample's value is the median over trainings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.replay._folder import Ids, Memory
from inrun.replay._lookahead import looked_ahead, value_columns
from inrun.replay._removal import JointPush, Passage, Push, Removal, removal_named, tangent
from inrun.replay._replica import Replica, Task, clipping
from inrun.replay._sweep import Method, sweep, windows
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility


def lookahead_groups(
    run: Trajectory,
    utility: Utility,
    groups: Mapping[str, Collection[Any]],
    *,
    removal: str = "renormalise",
    carry: int = 40,
) -> pa.Table:
    """What the loss would end at without each group, less what it ended at with all.

    One sweep backward, in which each group's part of each block takes a backward pass of its own.

    Args:
        run: a recorded run.
        utility: the validation loss.
        groups: by name, the ids of its samples; no sample is in two.
        removal: see `inrun.lookahead`.
        carry: see `inrun.lookahead`.

    Returns:
        `group`, `samples`, `value` in units of the validation loss (positive: the loss is higher
        without the group), and with several targets one column each; in the order of `groups`.

    Raises:
        MisuseError: no group, an empty one, a sample that is in two or was never visited.
    """
    group_of = _group_of(run, groups)
    names = list(groups)
    values = np.zeros((len(names), len(utility.targets)))
    whole, push = windows(None, len(run.steps)), JointPush(group_of, carry)
    method = Method(whole, removal_named(removal), push, damped=True)
    for found in sweep(run, utility, method):
        for block, of_block in zip(found.step.blocks, found.values, strict=True):
            for who, value in zip(block.ids, of_block.numpy(), strict=True):
                if not np.isnan(value).any():
                    values[group_of[who]] += value
    sizes = [len(groups[name]) for name in names]
    return pa.table({"group": names, "samples": sizes, **value_columns(utility, values)})


def _group_of(run: Trajectory, groups: Mapping[str, Collection[Any]]) -> dict[Any, int]:
    """By sample id, the number of its group."""
    found: dict[Any, int] = {}
    for number, (name, ids) in enumerate(groups.items()):
        what = run.unvisited(ids)
        if what is not None:
            raise MisuseError(f"The group {name!r} names {what}, which the run never visited.")
        for who in ids:
            if who in found:
                raise MisuseError(f"The sample {who!r} is in the group {name!r} and in another.")
            found[who] = number
    if not found:
        raise MisuseError("groups names no group.")
    return found


def lookahead_between(
    run: Trajectory,
    utility: Utility,
    *,
    share: float = 0.5,
    weight: float = 0.15,
    trainings: int = 4,
    seed: int = 0,
) -> pa.Table:
    """Values whose sums say what training without many samples does.

    Costs `trainings` trainings and as many sweeps, whatever the number of samples; the recorded
    states of one of them at a time are in memory.

    Args:
        run: a recorded run; its removal is 'renormalise'.
        utility: the validation loss; every target is carried in the same sweeps.
        share: of the samples, what is to be removed: so many have their weight lowered.
        weight: to which it is lowered, above 0.
        trainings: how many. With less than 4 one whose slopes explode is not voted down.
        seed: of whose weights are lowered.

    Returns:
        `sample_id`, `value` (positive: the loss is higher without it), and with several targets one
        column each; in the order of ids.

    Raises:
        MisuseError: numbers out of range.
    """
    if not (0 < share < 1 and 0 < weight <= 1 and trainings >= 1):
        raise MisuseError(
            f"share {share}, weight {weight} and trainings {trainings} must be a share between 0 "
            "and 1, a weight above 0 and at most 1, and at least one training."
        )
    ids, rng = run.sample_ids(), np.random.default_rng(seed)
    count = max(1, round(share * len(ids)))
    order: list[int] = []
    tables = []
    for number in range(trainings):  # in pairs of complements, so that each is lowered in its turn
        order = order[::-1] if number % 2 else rng.permutation(len(ids)).tolist()
        lowered = {ids[place]: weight for place in order[:count]}
        weights = dict.fromkeys(ids, 1.0) | lowered
        tables.append(_slopes(reweighted(run, weights), utility, weights))
    names = utility.targets if len(utility.targets) > 1 else ("value",)
    medians = [np.median([table[n].to_numpy() for table in tables], axis=0) for n in names]
    columns = value_columns(utility, np.stack(medians, 1))
    return pa.table({"sample_id": tables[0]["sample_id"], **columns})


def reweighted(run: Trajectory, weights: Mapping[Any, float]) -> Trajectory:
    """The same training with other weights of its samples, recorded in memory.

    Same start, same order, same random numbers, clipping anew. Weights are above 0; a block's loss
    is the mean by them.
    """
    base = run.replica.task

    def fetch(ids: Ids) -> Any:
        return ids, base.fetch(ids)

    def shares(batch: Any) -> Tensor:
        ids, rows = batch
        own = torch.tensor([weights[who] for who in ids], dtype=torch.float64)
        return own * base.shares_of_mean(rows, len(ids))

    def losses(model: nn.Module, batch: Any) -> Tensor:
        ids, rows = batch
        own = torch.tensor([weights[who] for who in ids], dtype=torch.float64)
        terms = base.losses(model, rows)
        return terms * (own / shares(batch).sum()).to(terms)

    keeper = Memory()
    task = Task(losses, fetch, base.clip_norm, shares)
    base_replica = run.replica
    replica = Replica(base_replica.model, base_replica.optimizer, task, keeper, base_replica.modes)
    replica.put(run.keeper.state(0))
    keeper.keep(0, replica.take())
    for step in run.steps:
        if any(block.random for block in step.blocks):
            keeper.keep_random(step.number, run.keeper.random(step.number))
        norm = replica.play(step)
        keeper.add(replace(step, norm=norm, clip=clipping(norm, base.clip_norm)))
        if step.number in run.kept:
            keeper.keep(step.number, replica.take())
    return Trajectory(keeper, replica)


def _slopes(run: Trajectory, utility: Utility, weights: Mapping[Any, float]) -> pa.Table:
    """Values along a reweighted run: what going from weight 1 to 0 would do at these slopes."""

    def push(
        passage: Passage, contractions: list[Tensor], ends_at: int, removal: Removal
    ) -> list[Tensor]:
        found = []
        values = tangent(passage, contractions, ends_at, removal)
        shares = passage.gradient.shares_of_mean
        for block, of_block, f in zip(passage.step.blocks, values, shares, strict=True):
            own = torch.tensor([weights[who] for who in block.ids], dtype=torch.float64)
            found.append(of_block / (f + own * (1 - f)).unsqueeze(1))
        return found

    way: Push = push
    method = Method(windows(None, len(run.steps)), removal_named("renormalise"), way)
    return looked_ahead(run, utility, method).values()
