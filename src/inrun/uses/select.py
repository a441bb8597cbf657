"""Which samples to train on, under one frame: at any horizon, before training or while it goes.

    offline    score a recorded run's samples by look-ahead, keep the best part, train on it again
    online     choose from each batch of candidates by K-step value, and train on those alone
    check      train every arm again from the same seeds: a selection beside its controls

Horizon 1 asks what a sample does at once, the run's end what it does to the finished model (the
frame of arXiv 2605.18814); docs/evidence/selection.md says what was measured between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.replay import Trajectory, lookahead
from inrun.uses._check import check
from inrun.uses._comparison import Comparison
from inrun.uses._online import BY, online
from inrun.uses._online_selection import Loop, OnlineSelection
from inrun.uses._prune import lowest
from inrun.utility import Utility

__all__ = [
    "BY",
    "Comparison",
    "Loop",
    "OfflineSelection",
    "OnlineSelection",
    "check",
    "offline",
    "online",
]


@dataclass(frozen=True, repr=False)
class OfflineSelection(Answer):
    """What `inrun.select.offline` returns.

    Attributes:
        table: one row per visited sample, the best first: `sample_id`, `value` (summed over its
            visits, in units of the validation loss, positive helped), `loss` at the end of the run,
            `group`, `chosen`.
    """

    table: pa.Table

    def sentences(self) -> list[str]:
        """How many are chosen."""
        return [f"{len(self.chosen):,} of {self.table.num_rows:,} samples chosen, the best first."]

    @property
    def chosen(self) -> list[Any]:
        """Ids to train on, in the order of ids."""
        return self._kept("value")

    def arms(self, seed: int) -> dict[str, list[Any]]:
        """Ids by arm, in the order of ids: the chosen and their controls, which are as many.

        Args:
            seed: of the random control.

        Returns:
            'chosen', 'random', and 'loss' (the largest losses at the end of the run), each with as
            many of every group.
        """
        return {"chosen": self.chosen, "random": self._kept(seed), "loss": self._kept("loss")}

    def _kept(self, by: str | int) -> list[Any]:
        table = self.table.sort_by("sample_id")
        ids: list[Any] = table["sample_id"].to_pylist()
        chosen = table["chosen"].to_numpy(zero_copy_only=False)
        if isinstance(by, str):
            score = table[by].to_numpy()
        else:
            score = np.random.default_rng(by).random(len(ids))
        group = np.array(table["group"].to_pylist(), dtype=object)
        keep = lowest(-score, group, lambda rows: int(chosen[rows].sum()))
        return [i for i, stays in zip(ids, keep.tolist(), strict=True) if stays]


def offline(
    run: Trajectory,
    utility: Utility,
    keep: int | float,
    *,
    horizon: int | None = None,
    groups: Mapping[Any, Any] | None = None,
) -> OfflineSelection:
    """Chooses the samples that did most for the validation loss in a recorded run.

    Values are those of `inrun.lookahead`, summed over visits. A choice, not yet a suggestion:
    whether training on it is better than on a random part says `inrun.select.check`.

    Args:
        run: from `recorder.finish()` or `inrun.load`.
        utility: the validation loss; of several targets their weighted sum.
        keep: how many samples as an int, or what share of them as a float below 1.
        horizon: at how many steps' distance the loss is read; None is the run's end.
        groups: by id, the group (a class, a source) of each sample: every group keeps the same
            share. Without it, values may empty whole classes.

    Raises:
        MisuseError: nothing or everything would be kept, or a sample has no group.
        InvariantError: the replay does not do what the run did.
    """
    values = lookahead(run, utility, horizon).values()
    ids = values["sample_id"].to_pylist()
    value = values["value"].to_numpy()
    count = round(keep * len(ids)) if isinstance(keep, float) else keep
    if not 0 < count < len(ids):
        raise MisuseError(
            f"keep={keep} would keep {count} of {len(ids)} samples. Pass a share between 0 and 1, "
            "or a number of samples that leaves some out."
        )
    group = _groups(ids, groups)
    dropped = lowest(value, group, lambda rows: round((1 - count / len(ids)) * len(rows)))
    known = run.losses()
    table = pa.table(
        {
            "sample_id": values["sample_id"],
            "value": value,
            "loss": np.array([known[who] for who in ids]),
            "group": pa.array([None if g is None else str(g) for g in group], pa.string()),
            "chosen": ~dropped,
        }
    )
    return OfflineSelection(table.sort_by([("value", "descending"), ("sample_id", "ascending")]))


def _groups(ids: list[Any], groups: Mapping[Any, Any] | None) -> np.ndarray:
    if groups is None:
        return np.full(len(ids), None, dtype=object)
    strangers = [who for who in ids if who not in groups]
    if strangers:
        raise MisuseError(
            f"groups says nothing of the sample {strangers[0]!r} and {len(strangers) - 1} others. "
            "Give every visited sample its group."
        )
    found = np.empty(len(ids), dtype=object)
    found[:] = [str(groups[who]) for who in ids]
    return found
