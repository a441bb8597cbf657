"""TracIn over checkpoints, in the same frame as look-ahead, to compare with.

    value_i = sum over chosen states s of  lr <gV(w_s), change of the gradient at w_s without i>

(Pruthi et al., 2020). It knows no optimizer but plain SGD and no curvature, and takes every visited
row at every state, whether it was in a step there or not.
"""

from __future__ import annotations

import torch

from inrun.errors import MisuseError
from inrun.replay._gradient import StepGradient
from inrun.replay._lookahead import Lookahead
from inrun.replay._removal import removal_named
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, evaluate


def tracin(
    run: Trajectory, utility: Utility, states: int = 5, *, removal: str = "renormalise"
) -> Lookahead:
    """TracIn values of every visit.

    Args:
        run: the recorded run.
        utility: the validation loss.
        states: how many of the kept states, evenly spread, the first among them.
        removal: see `inrun.lookahead`.

    Returns:
        The same tables as look-ahead gives.
    """
    if states < 1:
        raise MisuseError(f"states is {states}; TracIn needs at least one.")
    meaning, replica = removal_named(removal), run.replica
    before = run.kept[:-1]
    spread = torch.linspace(0, len(before) - 1, min(states, len(before))).round().int().tolist()
    values = [
        [torch.zeros(len(b.ids), len(utility.targets)).double() for b in step.blocks]
        for step in run.steps
    ]
    groups = replica.optimizer.param_groups
    group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    for state in [before[i] for i in spread]:
        replica.put(run.keeper.state(state), lend=True)
        gradients = evaluate(utility, replica.model, replica.parameters).gradients
        for number, step in enumerate(run.steps):
            replica.set_groups(step)
            gradient = StepGradient(replica, step)
            directions = {
                name: step.groups[group_of[id(replica.parameters[name])]]["lr"] * gradients[name]
                for name in gradient.raw
            }
            for block, rows in enumerate(gradient.contract(directions, curvature=False)[1]):
                effect = meaning(rows, gradient.shares_of_mean[block])
                values[number][block] -= effect
    parts = [
        (step.number, len(run.steps), block.ids, found.numpy())
        for step, of_blocks in zip(run.steps, values, strict=True)
        for block, found in zip(step.blocks, of_blocks, strict=True)
    ]
    return Lookahead(run, utility, parts)
