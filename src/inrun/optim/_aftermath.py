"""What a change of the moments does after its step: through every later step to a later loss.

A removed sample leaves changed moments behind. While the later steps' gradients stay as recorded,
what becomes of the change is known without a graph: moments are carried by the rule, each later
step moves the weights a little otherwise, and what that is worth is the loss's gradient in the
state after that step. An `Aftermath` gathers these steps from the last one backward and says at any
point what a change of the moments is worth. Letters: R changes (rows), K targets, n elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import torch
from torch import Tensor

from inrun.optim._automatic import derivative_of
from inrun.optim._derivative import Along
from inrun.optim._rule import Move


class Aftermath(ABC):
    """The steps that follow, of parameters that move alike."""

    @abstractmethod
    def worth(self, new: Along, old: Along, after: Along) -> Tensor:
        """The change of the loss that other moments make, (R, K) float64.

        Args:
            new: what the step before those that follow would have left, moments (R, n).
            old: what it did leave, moments (n,).
            after: the loss's gradient in the state that it left, (K, n).
        """

    @abstractmethod
    def precede(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        """That step now belongs to those that follow; arguments as for `worth`."""


class FirstOrder(Aftermath):
    """To first order at once: exact where the rule is affine."""

    def worth(self, new: Along, old: Along, after: Along) -> Tensor:
        """See `Aftermath.worth`."""
        total = new.weight.new_zeros((), dtype=torch.float64)
        for changed, kept, gradient in zip(new.moments, old.moments, after.moments, strict=True):
            total = total + paired(changed - kept, gradient)
        return total.expand(len(new.weight), len(after.weight))

    def precede(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        """See `Aftermath.precede`: nothing is kept."""


class Stepped(Aftermath):
    """Step by step through the rule's own formulas, for so many steps; the rest to first order."""

    def __init__(self, steps: int):
        self._later: deque[tuple[Move[Any, Any], Along]] = deque(maxlen=steps)

    def worth(self, new: Along, old: Along, after: Along) -> Tensor:
        """See `Aftermath.worth`."""
        total = new.weight.new_zeros((), dtype=torch.float64)
        change = tuple(a - b for a, b in zip(new.moments, old.moments, strict=True))
        for move, then in self._later:
            moved, change = derivative_of(move.rule).carried(move, change)
            total, after = total + paired(moved, then.weight), then
        for part, gradient in zip(change, after.moments, strict=True):
            total = total + paired(part, gradient)
        return total.expand(len(new.weight), len(after.weight))

    def precede(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        """See `Aftermath.precede`."""
        self._later.appendleft((move, after))


def paired(change: Tensor, gradient: Tensor) -> Tensor:
    """(R, n) and (K, n) to (R, K), added up in double precision."""
    return change.double() @ gradient.double().T
