"""A step on its way: taken, then scored with its numbers still on the device, then read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from inrun.attribution._payout import Paid
from inrun.attribution._plan import ParameterPlan
from inrun.attribution._sums import Sums
from inrun.capture import Block, Reading
from inrun.ledger import Entries
from inrun.utility import Evaluation, demand_finite


class Scored(NamedTuple):
    """A step's result: values (N, K) in the blocks' order, its books, the method really used.

    `paid`: what earlier steps' samples were paid by momentum, now that their window is over.
    """

    values: np.ndarray
    entries: Entries
    estimator: str
    paid: Sequence[Paid] = ()


class Unread:
    """A scored step whose numbers are on their way from the device."""

    def __init__(
        self,
        sums: Sums,
        passes: tuple[Evaluation, Evaluation],
        targets: Sequence[str],
        estimator: str,
        paid: Sequence[Paid],
    ):
        sums.send()
        self._sums, self._targets, self._estimator, self._paid = sums, targets, estimator, paid
        self._checked = [found.checked for found in passes]
        self._losses = Reading(*(found.losses for found in passes))

    def read(self) -> Scored:
        """The step's result.

        Raises:
            MisuseError: a validation loss is not finite.
        """
        opening, closing = self._losses.wait()
        values, momentum, decay = self._sums.fetch()
        for losses, checked in zip((opening, closing), self._checked, strict=True):
            if not checked:
                demand_finite(self._targets, losses)
        entries = Entries(opening.numpy(), closing.numpy(), values.sum(0), momentum, decay)
        return Scored(values, entries, self._estimator, self._paid)


@dataclass
class Taken:
    """A step that was taken, with all that is needed to score it but the closing pass."""

    blocks: list[Block]
    plans: dict[str, ParameterPlan]
    opening: Evaluation | None
    extra: dict[str, dict[str, Tensor]]
    step: int

    def kept(self) -> Taken:
        """The same with gradients that the loop does not overwrite."""
        plans = {name: plan.kept() for name, plan in self.plans.items()}
        return replace(self, plans=plans)
