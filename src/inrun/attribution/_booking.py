"""From scored steps to the record."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._paying import Paying
from inrun.attribution._record import Record
from inrun.attribution._scored import Scored
from inrun.attribution._scorer import Scorer
from inrun.distributed import gathered_step
from inrun.ledger import Ids


class Step(NamedTuple):
    """One scored step: its number, how many steps it stands for, and its samples."""

    number: int
    weight: float
    ids: Ids


class Booking:
    """Takes scored steps in, in their order."""

    def __init__(
        self, scorer: Scorer, record: Record, line: LiveLine, watch: Stopwatch, paying: Paying
    ):
        self._scorer, self._record, self._line = scorer, record, line
        self._watch, self._paying = watch, paying
        self.scored = 0

    def book(self, step: Step, scored: Scored) -> None:
        """Books a step of this process's samples, and those of the others."""
        if self._scorer.watcher is not None:
            self._scorer.watcher.scored(step.number, step.weight, scored.values)
        ids, values = gathered_step(self._scorer.processes, step.ids, scored.values)
        entries = scored.entries._replace(samples=values.sum(0))
        if self._scorer.processes.size > 1:  # each has its own part of what is no sample's
            unowned = torch.as_tensor(np.asarray(entries.unattributed))
            summed = self._scorer.processes.mean(unowned) * self._scorer.processes.size
            entries = entries._replace(unattributed=summed.numpy())
        everyones = scored._replace(values=values, entries=entries)
        self.scored += 1
        waits = self._scorer.payouts is not None
        self._record.add(step.number, ids, everyones, step.weight, waits=waits)
        self._line.update(
            self._record.latest, self._record.residual_share, self._watch.overhead,
            self._paying.words,
        )  # fmt: skip
        self._paying.book(scored.paid)
