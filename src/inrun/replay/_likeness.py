"""How like a query's gradient each sample's own gradient is, in the run's last state.

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

from inrun.optim import as_rows
from inrun.replay._gradient import SIDE_BY_SIDE, pulled_back
from inrun.replay._snapshot import undisturbed_random
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, evaluate


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
