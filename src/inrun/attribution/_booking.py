"""From scored steps to the record; where numbers are read late, a step is booked after the next."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch

from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._paying import Paying
from inrun.attribution._record import Record
from inrun.attribution._scored import Scored, Unread
from inrun.attribution._scorer import Scorer
from inrun.capture import gathered_step
from inrun.errors import InRunError, InRunWarning
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
        self._waiting: tuple[Step, Unread] | None = None
        self.scored = 0

    def book(self, step: Step, unread: Unread) -> Scored:
        """Waits for a step's numbers and books it.

        Returns:
            What this process's samples did, of several.

        Raises:
            MisuseError: a validation loss is not finite.
        """
        self.complete()
        return self._book(step, unread)

    def _book(self, step: Step, unread: Unread) -> Scored:
        scored = unread.read()
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
        return scored

    def book_later(self, step: Step, unread: Unread) -> None:
        """Books a step when there is other work for the device, or when somebody asks."""
        before, self._waiting = self._waiting, (step, unread)
        if before is not None:
            self._book(*before)

    def complete(self) -> None:
        """Books what was put off.

        Raises:
            MisuseError: as `book`.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._book(*waiting)

    def forget(self) -> None:
        """What was put off is another run's."""
        self._waiting = None

    def end(self) -> None:
        """Books what was put off; an error becomes a warning, and what was booked can be read."""
        number = None if self._waiting is None else self._waiting[0].number
        try:
            self.complete()
        except InRunError as error:
            warnings.warn(f"Step {number} was not booked: {error}", InRunWarning, stacklevel=2)
