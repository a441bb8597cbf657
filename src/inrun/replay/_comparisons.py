"""Values of other methods, in the same frame as look-ahead, to compare with.

TracIn over checkpoints:

    value_i = sum over chosen states s of  lr <gV(w_s), change of the gradient at w_s without i>

(Pruthi et al., 2020). It knows no optimizer but plain SGD and no curvature, and takes every visited
row at every state, whether it was in a step there or not.

Likeness of each sample's own gradient to a query's, in the run's last state:

    dot_ik    = <g_i, g_k>                        g_i the gradient of sample i's own loss
    cosine_ik = <g_i, g_k> / (|g_i| |g_k|)        g_k that of query k

They know the data and the trained model, and nothing of the training. Letters: n samples, R rows
side by side, K queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.optim import as_rows
from inrun.replay._gradient import SIDE_BY_SIDE, StepGradient, pulled_back
from inrun.replay._lookahead import Lookahead
from inrun.replay._removal import removal_named
from inrun.replay._snapshot import undisturbed_random
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, evaluate


def tracin(
    run: Trajectory, utility: Utility, states: int = 5, *, removal: str = "renormalise"
) -> Lookahead:
    """TracIn values of every visit, in the tables that look-ahead gives.

    `states` of the kept states are used, evenly spread, the first among them.
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


class GradientLikeness(NamedTuple):
    """`ids` of n samples, in the order of first visits; `dot`, `cosine` (n, K); `norm` (n,)."""

    ids: list[Any]
    dot: np.ndarray
    cosine: np.ndarray
    norm: np.ndarray


def gradient_likeness(run: Trajectory, utility: Utility) -> GradientLikeness:
    """Products of every sample's gradient with each target's, in the last state.

    A sample's gradient is that of its row in its first visit, in the mode and with the random
    numbers of that step: one backward pass for each sample, some side by side.
    """
    replica = run.replica
    model = run.finished()
    queries = {
        n: as_rows(g) for n, g in evaluate(utility, model, replica.parameters).gradients.items()
    }
    lengths = torch.stack([as_rows(g).double().square().sum(1) for g in queries.values()]).sum(0)
    ids: list[Any] = []
    dots, squares = [], []
    for names, shares in _own_gradients(run):
        pairs = [
            (as_rows(g), queries[n]) for n, g in zip(queries, shares, strict=True) if g is not None
        ]
        dots.append(torch.stack([(g @ q.T).double() for g, q in pairs]).sum(0).cpu())
        squares.append(torch.stack([g.double().square().sum(1) for g, _ in pairs]).sum(0).cpu())
        ids += names
    dot, norm = torch.cat(dots), torch.cat(squares).sqrt()
    length = norm[:, None] * lengths.sqrt().cpu()
    cosine = torch.where(length > 0, dot / length, torch.zeros_like(dot))
    return GradientLikeness(ids, dot.numpy(), cosine.numpy(), norm.numpy())


def _own_gradients(run: Trajectory) -> Iterator[tuple[list[Any], Sequence[Tensor | None]]]:
    """Ids, and the gradients of their own losses, (R, *shape) per parameter."""
    replica, seen = run.replica, set[Any]()
    parameters = list(replica.parameters.values())
    for step in run.steps:
        for number, block in enumerate(step.blocks):
            place = {who: row for row, who in enumerate(block.ids) if who not in seen}
            if not place:
                continue
            seen |= place.keys()
            with undisturbed_random(replica.model), torch.enable_grad():
                replica.begin_block(step, block, number)
                terms, batch = replica.terms(block.ids)
            shares = replica.task.shares_of_mean(batch, len(block.ids)).to(terms)
            own = torch.diag(torch.where(shares > 0, len(step.blocks) / shares, shares))
            rows = list(place.values())
            for begin in range(0, len(rows), SIDE_BY_SIDE):
                part = rows[begin : begin + SIDE_BY_SIDE]
                names = [block.ids[row] for row in part]
                yield names, pulled_back([terms], [own[part]], parameters)
