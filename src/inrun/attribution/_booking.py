"""Books scored steps, and what momentum pays, of all processes' samples; tells what waits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from inrun.attribution._advice import Advice
from inrun.attribution._live import LiveLine, Stopwatch
from inrun.attribution._record import Record
from inrun.distributed import Processes, gathered_step
from inrun.momentum import Holding, Paid, Payouts
from inrun.scoring import Scored, Step


class Booking:
    """Takes scored steps in, in their order."""

    def __init__(
        self,
        record: Record,
        line: LiveLine,
        watch: Stopwatch,
        advice: Advice,
        processes: Processes,
        window: Payouts | None,
    ):
        self._record, self._line, self._watch, self._advice = record, line, watch, advice
        self._processes, self._window = processes, window
        self.scored = 0

    def book(self, step: Step, scored: Scored) -> None:
        """Books a step of this process's samples, and those of the others, and what it paid."""
        ids, values = gathered_step(self._processes, step.ids, scored.values)
        entries = scored.entries._replace(samples=values.sum(0))
        if self._processes.size > 1:  # each has its own part of what is no sample's
            unowned = torch.as_tensor(np.asarray(entries.unattributed))
            summed = self._processes.mean(unowned) * self._processes.size
            entries = entries._replace(unattributed=summed.numpy())
        sizes = scored.sizes
        if sizes is not None:
            sizes = gathered_step(self._processes, [], sizes)[1]
        everyones = scored._replace(values=values, entries=entries, sizes=sizes)
        self.scored += 1
        paid: list[Paid] = []
        if self._window is not None:
            paid = self._window.end_step(
                step.number, step.owned, step.scales, step.memory, step.gradients(), step.left()
            )
        waits = self._window is not None
        self._record.add(step.number, ids, everyones, step.weight, waits=waits)
        self._line.update(
            self._record.latest, self._record.residual_share, self._watch.overhead, self._words
        )
        self._pay(paid)

    def go_on(self, scored: int) -> None:
        """So many steps were scored before, in a run that goes on."""
        self.scored = scored

    # ---- what momentum pays

    def _pay(self, paid: Sequence[Paid]) -> None:
        window = self._window
        if window is None:
            return
        for step, values in paid:
            self._record.pay_out(step, gathered_step(self._processes, [], values)[1])
        window.complain()
        self._advice.of_ended(window.ended())
        if window.waiting == 2:  # what two steps share is known now
            self._advice.of_payouts(window.held(), window.expected(), window.free(), window.window)

    def pay_out(self, *, parted: bool = False) -> None:
        """Pays all steps that wait what momentum did for them so far.

        With `parted` this process may have left the others, which are not waited for: of several
        processes nobody is paid.
        """
        if self._window is None:
            return
        with self._watch:
            if parted and self._processes.size > 1:
                self._window.abandon()
                self._record.let_go()
            else:
                self._pay(self._window.pay_out())

    def pause(self, names: Collection[str]) -> None:
        """Parameters move without being scored, and their memory with them.

        Where all windows are over by that, everybody is paid.
        """
        if self._window is None or not self._window.waiting:
            return
        with self._watch:
            self._window.end(names)
            self._advice.of_ended(self._window.ended())
            over = self._window.names <= set(names)
        if over:
            self.pay_out()

    def owed(self) -> list[Paid]:
        """What is still in the momentum of each step that waits; all processes call it."""
        found = [] if self._window is None else self._window.owed()
        return [Paid(step, gathered_step(self._processes, [], v)[1]) for step, v in found]

    def close(self) -> None:
        if self._window is not None:
            self._window.close()

    def waiting(self) -> dict[str, Any]:
        """What steps that momentum still pays hold, and where; see `Attribution.waiting`."""
        none = Holding(0, 0)
        held, expected = none, none
        steps, remaining = 0, 0.0
        if self._window is not None:
            held, expected = self._window.held(), self._window.expected()
            steps, remaining = self._window.waiting, self._window.remaining()
        return {
            "steps": steps,
            "bytes": held.memory,
            "disk_bytes": held.disk,
            "full_bytes": expected.memory,
            "full_disk_bytes": expected.disk,
            "not_acted": remaining,
        }

    def _words(self) -> str:
        """For the live line: what waits, and what it will be."""
        if self._window is None:
            return ""
        held, expected = self._window.held(), self._window.expected()
        now, full = held.memory + held.disk, expected.memory + expected.disk
        where = "on disk" if self._window.on_disk else "held"
        return f"  payout {now / 1e6:.0f} of {full / 1e6:.0f} MB {where}"
