"""What came of a step, read from the device in one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Reading
from inrun.errors import MisuseError
from inrun.ledger import NO_PASS, OTHER_ROWS, Entries
from inrun.scoring._sums import Sums
from inrun.utility import Evaluation, finite_sums, require_finite, require_finite_gradients


class Scored(NamedTuple):
    """A step's result: values (N, K) in the blocks' order, its books, the method really used.

    `sizes` (N,) are those of the samples' own gradients, where they were asked for.
    """

    values: np.ndarray
    entries: Entries
    estimator: str
    sizes: np.ndarray | None = None


def read(
    sums: Sums,
    passes: tuple[Evaluation, Evaluation],
    targets: Sequence[str],
    estimator: str,
    unowned: Sequence[bool],
    other: Tensor | None,
    sizes: Tensor | None = None,
) -> Scored:
    """A step's result: its numbers, in one transfer from the device.

    Args:
        sums: what its parameters added up to.
        passes: before and after it.
        targets: their names.
        estimator: the method really used.
        unowned: of each share of the step whether it is no sample's.
        other: what changed the loss before the step's opening pass, (K,).
        sizes: of every share's gradient, where they were asked for.

    Raises:
        MisuseError: a validation loss, a validation gradient or a value is not finite.
    """
    none = torch.zeros(len(targets), dtype=torch.float64)
    losses = Reading(*(found.losses for found in passes), none if other is None else other)
    looks = not (passes[1].checked or sums.sharded)  # where each process has its own parts
    finite = Reading(finite_sums(passes[1])) if looks else None
    asked = None if sizes is None else Reading(sizes)
    values, momentum, decay = sums.told(sums.sent())
    opening, closing, moved = (t.double().numpy() for t in losses.wait())
    for found, each in zip(passes, (opening, closing), strict=True):
        if not found.checked:
            require_finite(targets, torch.from_numpy(each))
    if finite is not None and not finite.wait()[0].numpy().all():
        require_finite_gradients(passes[1], targets)
    _require_values(passes, values, momentum, decay)
    opening, note = opening + moved, ""  # the last step's closing loss
    if np.isnan(closing).any() or np.isnan(opening).any():
        note = NO_PASS
    elif passes[0].rows != passes[1].rows:
        opening, note = np.full_like(opening, np.nan), OTHER_ROWS
    no_ones = np.array(unowned, dtype=bool)
    owned, rest = values[~no_ones], values[no_ones]
    entries = Entries(opening, closing, owned.sum(0), momentum, decay, rest.sum(0), moved, note)
    own_sizes = None if asked is None else asked.wait()[0].double().numpy()[~no_ones]
    return Scored(owned, entries, estimator, own_sizes)


def _require_values(passes: Sequence[Evaluation], *found: np.ndarray) -> None:
    """Refuses numbers that would stay in totals for good.

    Raises:
        MisuseError: one is not finite.
    """
    if all(np.isfinite(numbers).all() for numbers in found):
        return
    for evaluation in passes:
        require_finite_gradients(evaluation)
    raise MisuseError(
        "The values of this step are not finite, though the validation loss and its gradient are: "
        "the optimizer's update has no slope where it was taken (eps=0, moments that underflowed, "
        "weights that overflowed). The step is not booked. Use eps=1e-8, or a wider dtype."
    )
