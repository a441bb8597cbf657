"""A step on its way: taken, then scored with its numbers still on the device, then read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.attribution._payout import Paid
from inrun.attribution._plan import ParameterPlan
from inrun.attribution._sums import Sums
from inrun.capture import Block, Reading
from inrun.errors import MisuseError
from inrun.ledger import NO_PASS, OTHER_ROWS, Entries
from inrun.utility import Evaluation, demand_finite, demand_finite_gradients


class Scored(NamedTuple):
    """A step's result: values (N, K) in the blocks' order, its books, the method really used.

    `paid`: what earlier steps' samples were paid by momentum, now that their window is over.
    """

    values: np.ndarray
    entries: Entries
    estimator: str
    paid: Sequence[Paid] = ()


class Unread:
    """A scored step whose numbers are on their way from the device.

    Args:
        sums: what its parameters added up to.
        passes: before and after it.
        targets: their names.
        estimator: the method really used.
        paid: what earlier steps' samples were paid.
        unowned: of each share of the step whether it is no sample's.
        other: what changed the loss before the step's opening pass, (K,).
    """

    def __init__(
        self,
        sums: Sums,
        passes: tuple[Evaluation, Evaluation],
        targets: Sequence[str],
        estimator: str,
        paid: Sequence[Paid],
        unowned: Sequence[bool] = (),
        other: Tensor | None = None,
    ):
        sums.send()
        self._sums, self._targets, self._estimator, self._paid = sums, targets, estimator, paid
        self._unowned = np.array(unowned, dtype=bool)
        self._passes = passes
        none = torch.zeros(len(targets), dtype=torch.float64)
        self._read = Reading(*(found.losses for found in passes), none if other is None else other)

    def read(self) -> Scored:
        """The step's result.

        Raises:
            MisuseError: a validation loss, a validation gradient or a value is not finite.
        """
        opening, closing, other = (t.numpy() for t in self._read.wait())
        values, momentum, decay = self._sums.fetch()
        for found, losses in zip(self._passes, (opening, closing), strict=True):
            if not found.checked:
                demand_finite(self._targets, torch.from_numpy(losses))
        _demand_values(self._passes, values, momentum, decay)
        opening, note = opening + other, ""  # the last step's closing loss
        if np.isnan(closing).any() or np.isnan(opening).any():
            note = NO_PASS
        elif self._passes[0].rows != self._passes[1].rows:
            opening, note = np.full_like(opening, np.nan), OTHER_ROWS
        owned, unowned = (values, np.zeros((0, values.shape[1])))
        if self._unowned.any():
            owned, unowned = values[~self._unowned], values[self._unowned]
        entries = Entries(
            opening, closing, owned.sum(0), momentum, decay, unowned.sum(0), other, note
        )
        return Scored(owned, entries, self._estimator, self._paid)


def _demand_values(passes: Sequence[Evaluation], *found: np.ndarray) -> None:
    """Refuses numbers that would stay in totals for good.

    Raises:
        MisuseError: one is not finite.
    """
    if all(np.isfinite(numbers).all() for numbers in found):
        return
    for evaluation in passes:
        demand_finite_gradients(evaluation)
    raise MisuseError(
        "The values of this step are not finite, though the validation loss and its gradient are: "
        "the optimizer's update has no slope where it was taken (eps=0, moments that underflowed, "
        "weights that overflowed). The step is not booked. Use eps=1e-8, or a wider dtype."
    )


@dataclass
class Taken:
    """A step that was taken, with all that is needed to score it but the closing pass."""

    blocks: list[Block]
    plans: dict[str, ParameterPlan]
    opening: Evaluation | None
    extra: dict[str, dict[str, Tensor]]
    step: int
    other: Tensor | None = None
