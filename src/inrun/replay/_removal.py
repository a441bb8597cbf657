"""What taking a sample out means, and how that enters the trajectory.

With c_i a row's gradient share, c the sum over its block, and f_i the part of the block's mean that
the row is (1/B where all rows weigh the same), the block's gradient changes by

    drop          -c_i                         the others keep their weight
    renormalise   -(c_i - f_i c) / (1 - f_i)   the loss is the mean over those that remain

and that change is pushed through the optimizer's step to first order, or by the exact first step.
Letters: B rows of a block, K targets, n elements of parameters of like moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.errors import require_one_of
from inrun.optim import (
    Along,
    Move,
    PostStepTerms,
    as_rows,
    derivative_of,
    paired,
    post_step_terms_of,
)
from inrun.replay._carried import Names
from inrun.replay._folder import Ids, Step
from inrun.replay._gradient import Graph, StepGradient, pulled_back
from inrun.replay._replica import Replica

Removal = Callable[[Tensor, Tensor], Tensor]
"""`removal(rows, shares_of_mean)`: how a linear quantity changes when each row is taken out.

`rows` (B, ...) is the quantity of each row, which add up to the block's, and `shares_of_mean` (B,)
are f; the change is (B, ...).
"""


def _drop(rows: Tensor, shares_of_mean: Tensor) -> Tensor:
    return -rows


def _renormalise(rows: Tensor, shares_of_mean: Tensor) -> Tensor:
    """Alone in its block, a row just goes."""
    f = shares_of_mean.to(rows).view(-1, *[1] * (rows.ndim - 1))
    rest = torch.where(f < 1, 1 - f, torch.ones_like(f))
    return torch.where(f < 1, (f * rows.sum(0) - rows) / rest, -rows)


REMOVALS: dict[str, Removal] = {"renormalise": _renormalise, "drop": _drop}
PUSHES = ("tangent", "finite")


def removal_named(name: str) -> Removal:
    """The meaning of that name."""
    require_one_of("removal", name, REMOVALS)
    return REMOVALS[name]


class Passage(NamedTuple):
    """A step that a loss's gradient was taken back through, but for the training loss's curvature.

    `after` is the loss's gradient in the state after the step, by the moves' names; `directions` p,
    its derivative in the raw gradient, (K, *shape) per parameter.
    """

    replica: Replica
    step: Step
    gradient: StepGradient
    moves: dict[Names, Move[Any, Any]]
    after: dict[Names, Along]
    directions: dict[str, Tensor]


Push = Callable[[Passage, list[Tensor], int, Removal], list[Tensor]]
"""`push(passage, contractions, ends_at, removal)`: what taking each row out does to the later loss.

`contractions` are <p, c_i>, (B, K) per block, and `ends_at` is the state that the values look ahead
to; values are (B, K) per block, float64 on the CPU, NaN for rows that were not asked for.
"""


def tangent(
    passage: Passage, contractions: list[Tensor], ends_at: int, removal: Removal
) -> list[Tensor]:
    """To first order in the row's weight: <p, change of the gradient>."""
    shares = passage.gradient.shares_of_mean
    return [removal(rows, f) for rows, f in zip(contractions, shares, strict=True)]


class FinitePush:
    """The exact change of (w, moments) when the row is really taken out, carried on by the sweep.

    Adam divides by the root of its second moment, so what a removal does to the moments acts on
    later steps in a way that bends: an element that only this row had touched stops moving at all,
    of which first order sees half. The changed moments therefore run on through the real rule,
    beside the recorded gradients, and each step's change of the weights is handed to the sweep; see
    `inrun.optim.PostStepTerms` for how far, and for what is left of them then.

    It needs the rows' shares themselves: `chunk` of them are in memory at a time, and what an
    post_step_terms keeps of `carry` steps.
    """

    def __init__(self, samples: Collection[object] | None, carry: int, chunk: int = 16):
        self._samples = None if samples is None else set(samples)
        self._chunk, self._carry = chunk, carry
        self._following: dict[Names, PostStepTerms] = {}
        self._window: int | None = None

    def __call__(
        self, passage: Passage, contractions: list[Tensor], ends_at: int, removal: Removal
    ) -> list[Tensor]:
        """The change of the loss by what the exact step leaves, now and in later steps."""
        if ends_at != self._window:
            self._following = {}
            self._window = ends_at
        self._following = {
            names: self._following.get(names) or post_step_terms_of(move, self._most(passage))
            for names, move in passage.moves.items()
        }
        found = []
        whole = {names: self._whole(passage, names) for names in passage.moves}
        base = {
            names: derivative_of(move.rule).moved(move, move.gradient)
            for names, move in passage.moves.items()
        }
        for block, graph in zip(passage.step.blocks, passage.gradient.graphs(), strict=True):
            K = contractions[0].shape[1]
            values = torch.full((len(block.ids), K), torch.nan, dtype=torch.float64)
            chosen = self._chosen(block.ids)
            for start in range(0, len(chosen), self._chunk):
                part = chosen[start : start + self._chunk]
                change = self._changes(passage, graph, part, removal)
                first = [rows[0] for rows in part]
                values[first] = self._carried_on(passage, change, whole, base)
            found.append(values)
        for names, following in self._following.items():
            following.advance(passage.moves[names], base[names], passage.after[names])
        return found

    def _chosen(self, ids: Ids) -> list[list[int]]:
        """Rows of a block that are taken out, each list of them at once."""
        return [[i] for i, who in enumerate(ids) if self._samples is None or who in self._samples]

    def _most(self, passage: Passage) -> int:
        """How many of the coming steps can be carried through at most."""
        return min(self._carry, passage.step.number)

    @staticmethod
    def _whole(passage: Passage, names: Names) -> Tensor:
        """The raw gradient of these parameters, (n,)."""
        return torch.cat([passage.gradient.raw[name].reshape(-1) for name in names])

    def _changes(
        self, passage: Passage, graph: Graph, chosen: list[list[int]], removal: Removal
    ) -> dict[Names, Tensor]:
        """Change of the raw gradient when each list of rows is taken out, (lists, n)."""
        # what taking rows out does is linear in the rows: weights (lists, B) on the shares
        weights = torch.stack(
            [_weights(rows, graph.shares_of_mean, removal) for rows in chosen]
        ).to(graph.terms)
        found = pulled_back([graph.terms], [weights], list(passage.replica.parameters.values()))
        shares = dict(zip(passage.replica.parameters, found, strict=True))
        changes = {}
        for names in passage.moves:
            parts = []
            for name in names:
                part, p = shares[name], passage.replica.parameters[name]
                zero = p.new_zeros(len(chosen), p.numel())
                parts.append(zero if part is None else as_rows(part.detach()))
            changes[names] = torch.cat(parts, 1)
        return changes

    def _carried_on(
        self,
        passage: Passage,
        change: dict[Names, Tensor],
        whole: dict[Names, Tensor],
        base: dict[Names, Along],
    ) -> Tensor:
        """Change of the loss, (rows, K)."""
        raw = {names: whole[names] + change[names] for names in change}
        clip: Tensor | float = 1.0
        limit = passage.replica.task.clip_norm
        if limit is not None:
            squares = [part.double().square().sum(1) for part in raw.values()]
            norm = torch.stack(squares).sum(0).sqrt()
            clip = (limit / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        total: Tensor | float = 0.0
        for names, move in passage.moves.items():
            consumed = (raw[names] * clip).to(move.gradient)
            new, old = derivative_of(move.rule).moved(move, consumed), base[names]
            total = total + paired(new.weight - old.weight, passage.after[names].weight)
            total = total + self._following[names].loss_change(new, old, passage.after[names])
        assert isinstance(total, Tensor)
        return total.cpu()


class JointPush(FinitePush):
    """The finite push of whole groups: their rows in a block are taken out at once.

    An element that only one source has touched stands still without the source, which the sum over
    its samples cannot say: without any one of them the others still move it. A group's value is
    that of the first of its rows in the block; the others have 0.
    """

    def __init__(self, group_of: Mapping[object, object], carry: int):
        super().__init__(set(group_of), carry)
        self._group_of = group_of

    def _chosen(self, ids: Ids) -> list[list[int]]:
        found: dict[object, list[int]] = {}
        for row, who in enumerate(ids):
            if who in self._group_of:
                found.setdefault(self._group_of[who], []).append(row)
        return list(found.values())


def _weights(rows: list[int], shares_of_mean: Tensor, removal: Removal) -> Tensor:
    """(B,): what taking these rows out at once puts on each row's share of the gradient."""
    gone = torch.zeros(len(shares_of_mean), dtype=torch.float64)
    gone[rows] = 1.0
    # a block of two rows, those that go and those that stay
    both = torch.stack([gone, 1 - gone])
    f = both @ shares_of_mean
    return removal(both, f)[0]


def push_named(name: str, samples: Collection[object] | None = None, carry: int = 40) -> Push:
    """The push of that name."""
    require_one_of("push", name, PUSHES)
    return FinitePush(samples, carry) if name == "finite" else tangent
