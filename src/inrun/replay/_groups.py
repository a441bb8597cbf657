"""What taking whole groups of samples out (a source, a class) does to the loss.

A group's value is no sum over its samples where they matter together: an element that only this
group has touched stands still without it, but not without any one of its samples. So a group's rows
in a block are taken out at once, through the real rule (`JointPush`), and what that leaves is
carried on by the sweep. That training would have taken other turns after a removal is not in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError
from inrun.replay._removal import JointPush, removal_named
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
    method = Method(whole, removal_named(removal), push)
    for found in sweep(run, utility, method):
        for block, of_block in zip(found.step.blocks, found.values, strict=True):
            for who, value in zip(block.ids, of_block.numpy(), strict=True):
                if not np.isnan(value).any():
                    values[group_of[who]] += value
    columns: dict[str, Any] = {
        "group": names,
        "samples": [len(groups[name]) for name in names],
        "value": values @ np.asarray(utility.weights),
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
