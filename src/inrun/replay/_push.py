"""How a removed sample enters the trajectory: to first order, or by its exact first step.

Letters: B rows of a block, K targets, n elements of parameters of like moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.optim import Aftermath, Along, Move, aftermath_of, as_rows, derivative_of, paired
from inrun.replay._carried import Names
from inrun.replay._folder import Step
from inrun.replay._gradient import Graph, StepGradient, pulled_back
from inrun.replay._removal import Removal


class Moment(NamedTuple):
    """A step as the sweep sees it when it asks for values.

    `after` is the loss's gradient in the state after the step; `contractions` (B, K) a block,
    <p, c_i> with p its derivative in the raw gradient.
    """

    step: Step
    gradient: StepGradient
    moves: dict[Names, Move[Any, Any]]
    after: dict[Names, Along]
    contractions: list[Tensor]
    parameters: dict[str, Tensor]
    clip_norm: float | None
    ends_at: int


class Push(ABC):
    """One way to say what a row did in its step. Stateless but for its settings."""

    name: ClassVar[str]

    @abstractmethod
    def values(self, moment: Moment, removal: Removal) -> list[Tensor]:
        """Values (B, K) a block, float64 on the CPU; NaN for rows that were not asked for."""


class TangentPush(Push):
    """First order in the row's weight: the loss's change is <p, change of the gradient>."""

    name = "tangent"

    def values(self, moment: Moment, removal: Removal) -> list[Tensor]:
        """See `Push.values`."""
        return [
            removal.effects(rows, shares)
            for rows, shares in zip(
                moment.contractions, moment.gradient.shares_of_mean, strict=True
            )
        ]


class FinitePush(Push):
    """The exact change of (w, moments) when the row is really taken out, carried on by the sweep.

    Adam divides by the root of its second moment, so what a removal does to the moments acts on
    later steps in a way that bends: an element that only this row had touched stops moving at all,
    of which first order sees half. The changed moments therefore run on through the real rule,
    beside the recorded gradients, and each step's change of the weights is handed to the sweep; see
    `inrun.optim.Aftermath` for how far, and for what is left of them then.

    It needs the rows' shares themselves: `chunk` of them are in memory at a time, and what an
    aftermath keeps of `carry` steps.

    Args:
        samples: ids to do it for; None for all.
        chunk: rows at a time.
        carry: steps that changed moments are played for.
    """

    name = "finite"

    def __init__(self, samples: Collection[object] | None, chunk: int, carry: int):
        self._samples = None if samples is None else set(samples)
        self._chunk, self._carry = chunk, carry
        self._following: dict[Names, Aftermath] = {}
        self._window: int | None = None

    def values(self, moment: Moment, removal: Removal) -> list[Tensor]:
        """See `Push.values`."""
        if moment.ends_at != self._window:
            self._following = {}
            self._window = moment.ends_at
        self._following = {
            names: self._following.get(names) or aftermath_of(move, self._most(moment))
            for names, move in moment.moves.items()
        }
        found = []
        whole = {names: self._whole(moment, names) for names in moment.moves}
        base = {
            names: derivative_of(move.rule).moved(move, move.gradient)
            for names, move in moment.moves.items()
        }
        for block, graph in zip(moment.step.blocks, moment.gradient.graphs(), strict=True):
            K = moment.contractions[0].shape[1]
            values = torch.full((len(block.ids), K), torch.nan, dtype=torch.float64)
            chosen = [
                i for i, who in enumerate(block.ids)
                if self._samples is None or who in self._samples
            ]  # fmt: skip
            for start in range(0, len(chosen), self._chunk):
                rows = chosen[start : start + self._chunk]
                change = self._changes(moment, graph, rows, removal)
                values[rows] = self._carried_on(moment, change, whole, base)
            found.append(values)
        for names, following in self._following.items():
            following.precede(moment.moves[names], base[names], moment.after[names])
        return found

    def _most(self, moment: Moment) -> int:
        """How many of the coming steps can be carried through at most."""
        return min(self._carry, moment.step.number)

    @staticmethod
    def _whole(moment: Moment, names: Names) -> Tensor:
        """The raw gradient of these parameters, (n,)."""
        return torch.cat([moment.gradient.raw[name].reshape(-1) for name in names])

    def _changes(
        self, moment: Moment, graph: Graph, rows: list[int], removal: Removal
    ) -> dict[Names, Tensor]:
        """Change of the raw gradient when each of these rows is taken out, (rows, n)."""
        # what taking row i out does is linear in the rows: weights (rows, B) on the shares
        identity = torch.eye(len(graph.terms), dtype=torch.float64)
        weights = removal.effects(identity, graph.shares_of_mean)[rows].to(graph.terms)
        found = pulled_back([graph.terms], [weights], list(moment.parameters.values()))
        shares = dict(zip(moment.parameters, found, strict=True))
        changes = {}
        for names in moment.moves:
            parts = []
            for name in names:
                part, p = shares[name], moment.parameters[name]
                zero = p.new_zeros(len(rows), p.numel())
                parts.append(zero if part is None else as_rows(part.detach()))
            changes[names] = torch.cat(parts, 1)
        return changes

    def _carried_on(
        self,
        moment: Moment,
        change: dict[Names, Tensor],
        whole: dict[Names, Tensor],
        base: dict[Names, Along],
    ) -> Tensor:
        """Change of the loss, (rows, K)."""
        raw = {names: whole[names] + change[names] for names in change}
        clip: Tensor | float = 1.0
        if moment.clip_norm is not None:
            squares = [part.double().square().sum(1) for part in raw.values()]
            norm = torch.stack(squares).sum(0).sqrt()
            clip = (moment.clip_norm / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        total: Tensor | float = 0.0
        for names, move in moment.moves.items():
            consumed = (raw[names] * clip).to(move.gradient)
            new, old = derivative_of(move.rule).moved(move, consumed), base[names]
            total = total + paired(new.weight - old.weight, moment.after[names].weight)
            total = total + self._following[names].worth(new, old, moment.after[names])
        assert isinstance(total, Tensor)
        return total.cpu()


def push_named(name: str, samples: Collection[object] | None, chunk: int, carry: int) -> Push:
    """The push of that name.

    Raises:
        MisuseError: there is none.
    """
    if name == FinitePush.name:
        return FinitePush(samples, chunk, carry)
    if name == TangentPush.name:
        return TangentPush()
    raise MisuseError(f"push {name!r} is not one of {TangentPush.name}, {FinitePush.name}.")
