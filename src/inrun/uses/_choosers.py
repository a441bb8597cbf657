"""Who of a batch of candidates is trained on: by K-step value, by chance, by loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inrun.optim import rule_for
from inrun.replay import Prospect, Task, undisturbed_random
from inrun.uses._candidates import Candidates
from inrun.uses._outlook import Outlook


class Chosen(NamedTuple):
    """`rows` of the block that are trained on, ascending; `scores` (N,) float64, high for chosen.

    Scores are NaN where nothing was computed.
    """

    rows: list[int]
    scores: Tensor


class Chooser(ABC):
    """One way to choose."""

    @abstractmethod
    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """Fills the places, fewer than there are candidates.

        Args:
            candidates: of one block.
            places: k.
            step: the optimizer step's number, from 0.
        """


class ByValue(Chooser):
    """Greedily by K-step value, in rounds.

    The best few get their places; then the step is looked at anew with them in it, and what they do
    already is worth less for the next: through the curvature of the validation loss and through the
    optimizer's own bend. With as many rounds as places it is greedy one by one.

    Args:
        optimizer: that is about to step.
        parameters: the trained ones, by name.
        outlook: where the loss is read.
        clip_norm: as the loop clips, or None.
        rounds: at least 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, Tensor],
        outlook: Outlook,
        clip_norm: float | None,
        rounds: int,
    ):
        self._optimizer, self._rule = optimizer, rule_for(optimizer)
        self._parameters, self._outlook = parameters, outlook
        self._clip_norm, self._rounds = clip_norm, rounds

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """See `Chooser.choose`. Scores are the values of the first round."""
        rounds = min(self._rounds, places)
        rows: list[int] = []
        first: Tensor | None = None
        for number in range(1, rounds + 1):
            values = self._values(candidates, rows, places, step)
            first = values if first is None else first
            left = values.clone()
            left[rows] = -torch.inf
            wanted = round(places * number / rounds) - len(rows)
            rows += left.argsort(descending=True, stable=True)[:wanted].tolist()
        assert first is not None
        return Chosen(sorted(rows), first)

    def _values(self, candidates: Candidates, rows: list[int], places: int, step: int) -> Tensor:
        raw = candidates.expected(rows, places)
        prospect = Prospect(self._optimizer, self._rule, self._parameters, raw, self._clip_norm)
        after = self._outlook.after(step, prospect, chosen=bool(rows))
        return candidates.values(prospect.taken_back(after), rows, places)


class AtRandom(Chooser):
    """By chance: the control that every selection must beat."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """See `Chooser.choose`."""
        order = torch.randperm(len(candidates), generator=self._generator)
        return Chosen(
            sorted(order[:places].tolist()), torch.full((len(candidates),), torch.nan).double()
        )


class ByLoss(Chooser):
    """The largest losses, by one more forward pass: what is not learnt yet, or cannot be."""

    def __init__(self, model: nn.Module, task: Task):
        self._model, self._task = model, task

    def choose(self, candidates: Candidates, places: int, step: int) -> Chosen:
        """See `Chooser.choose`."""
        with undisturbed_random(self._model), torch.no_grad():
            terms, _ = self._task.terms(self._model, candidates.ids)
        losses = terms.double().cpu()
        if candidates.shares_of_mean is not None:
            losses = losses / candidates.shares_of_mean.clamp(min=torch.finfo(losses.dtype).tiny)
        order = losses.argsort(descending=True, stable=True)
        return Chosen(sorted(order[:places].tolist()), losses)
