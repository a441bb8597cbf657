"""Books what momentum pays, of all processes' samples, and tells what waits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from inrun.attribution._advice import Advice
from inrun.attribution._live import Stopwatch
from inrun.attribution._payout import Paid
from inrun.attribution._record import Record
from inrun.attribution._scorer import Scorer
from inrun.attribution._shelf import Holding
from inrun.distributed import gathered_step


class Paying:
    """Between the payouts and the books; without payouts it does nothing."""

    def __init__(self, scorer: Scorer, record: Record, watch: Stopwatch, advice: Advice):
        self._payouts, self._processes = scorer.payouts, scorer.processes
        self._record, self._watch, self._advice = record, watch, advice

    def book(self, paid: Sequence[Paid]) -> None:
        """Books what a step's end brought.

        Raises:
            MisuseError: somebody wrote into what a step's shares are made of.
            StoreError: what waits could not be kept, or was lost.
        """
        if self._payouts is None:
            return
        for step, values in paid:
            self._record.pay_out(step, gathered_step(self._processes, [], values)[1])
        self._payouts.complain()
        self._advice.of_ended(self._payouts.ended())
        if self._payouts.waiting == 2:  # what two steps share is known now
            self._advice.of_payouts(
                self._payouts.held(), self._payouts.expected(), self._payouts.free(),
                self._payouts.window,
            )  # fmt: skip

    def settle(self, *, parted: bool = False) -> None:
        """Pays all steps that wait what momentum did for them so far.

        Args:
            parted: this process may have left the others, which are not waited for: of several
                processes nobody is paid.
        """
        if self._payouts is None:
            return
        with self._watch:
            if parted and self._processes.size > 1:
                self._payouts.abandon()
                self._record.let_go()
            else:
                self.book(self._payouts.settle())

    def pause(self, names: Collection[str]) -> bool:
        """Parameters move without being scored, and their memory with them.

        Returns:
            Whether all windows are over by that, and nothing else waits.
        """
        if self._payouts is None or not self._payouts.waiting:
            return True
        with self._watch:
            self._payouts.end(names)
            self._advice.of_ended(self._payouts.ended())
            return self._payouts.names <= set(names)

    def owed(self) -> list[Paid]:
        """What is still in the momentum of each step that waits; all processes call it."""
        found = [] if self._payouts is None else self._payouts.owed()
        return [Paid(step, gathered_step(self._processes, [], v)[1]) for step, v in found]

    def close(self) -> None:
        """Leaves no file."""
        if self._payouts is not None:
            self._payouts.close()

    def waiting(self) -> dict[str, Any]:
        """See `Attribution.waiting`."""
        none = Holding(0, 0)
        held, expected = none, none
        steps, remaining = 0, 0.0
        if self._payouts is not None:
            held, expected = self._payouts.held(), self._payouts.expected()
            steps, remaining = self._payouts.waiting, self._payouts.remaining()
        return {
            "steps": steps,
            "bytes": held.memory,
            "disk_bytes": held.disk,
            "full_bytes": expected.memory,
            "full_disk_bytes": expected.disk,
            "not_acted": remaining,
        }

    def words(self) -> str:
        """For the live line: what waits, and what it will be."""
        if self._payouts is None:
            return ""
        held, expected = self._payouts.held(), self._payouts.expected()
        now, full = held.memory + held.disk, expected.memory + expected.disk
        where = "on disk" if self._payouts.on_disk else "held"
        return f"  payout {now / 1e6:.0f} of {full / 1e6:.0f} MB {where}"
