"""Whether the rows that `inrun.explain` names did it: their steps trained again without them.

Three trainings set out from the same recorded state, with the same order and the same random
numbers: as it was, without the rows that are named, and without as many others of the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.replay import Trajectory
from inrun.uses._explain import MEMORY, Explanation
from inrun.utility import Utility, losses_of

AS_IT_WAS, WITHOUT, OTHERS = "as it was", "without the rows named", "without as many others"


@dataclass(frozen=True, repr=False)
class TrainedAgain(Answer):
    """What `inrun.explain_again` returns.

    Attributes:
        table: one row per training: `trained`, `rows` (left out), `loss` (at the stretch's end),
            `change` (of the loss from where the trainings part to the stretch's end).
    """

    table: pa.Table

    def sentences(self) -> list[str]:
        """What the loss did with the rows and without."""
        was, without, others = (row["change"] for row in self.table.to_pylist())
        return [
            f"The validation loss changed by {was:+.4g}; without the rows named by {without:+.4g}, "
            f"and without as many others of the same steps by {others:+.4g}."
        ]


def explain_again(
    found: Explanation, run: Trajectory, utility: Utility, *, seed: int = 0
) -> TrainedAgain:
    """Trains a stretch again without the rows that an explanation names.

    Args:
        found: from `inrun.explain`, of the same training.
        run: the recording of it (`inrun.record`, `inrun train --record`).
        utility: the validation loss.
        seed: of which others are left out for comparison.

    Raises:
        MisuseError: no row stands out, or the recording does not have these steps.
    """
    named = found.named
    if not named:
        raise MisuseError(
            f"No row stands out in step {found.first}, so there is none to train without. "
            "Explain another step, or a longer stretch."
        )
    first = max(1, found.first - MEMORY)
    inside = {i for step in run.steps[first - 1 : found.last] for b in step.blocks for i in b.ids}
    rest = sorted(inside - set(named))
    count = min(len(named), len(rest))
    drawn = np.random.default_rng(seed).choice(len(rest), count, replace=False)
    arms: dict[str, list[Any]] = {AS_IT_WAS: [], WITHOUT: named, OTHERS: [rest[i] for i in drawn]}
    weights = np.array(utility.weights)

    def loss() -> float:
        return float(losses_of(utility, run.replica.model).numpy() @ weights)

    run.stretch(first, first - 1)
    before, rows = loss(), []
    for name, without in arms.items():
        run.stretch(first, found.last, without)
        after = loss()
        rows.append(
            {"trained": name, "rows": len(without), "loss": after, "change": after - before}
        )
    return TrainedAgain(pa.Table.from_pylist(rows))
