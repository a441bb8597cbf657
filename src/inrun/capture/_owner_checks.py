"""Owners checked on the training's own batches, and what became of it.

Two checks, each blind where the other sees: tinted gradients (`_tinted`), in the first block and
whenever the sequence of operations changes, in training mode and through the whole loss; and a lone
sample (`_lone`), at a few random steps, which trusts nothing that was followed but runs in
evaluation mode and through the model's call only. Where one disagrees the parameter is a gap from
then on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._block_setting import uncompiled
from inrun.capture._calls import Calls, CannotReplayError, ModelCall
from inrun.capture._coverage import Coverage
from inrun.capture._inputs import Inputs
from inrun.capture._lone import lone
from inrun.capture._mode import CaptureMode
from inrun.capture._recorded import Missed
from inrun.capture._replaying import replaying
from inrun.capture._tinted import Borders, CannotTellError, Start, Verdict, tinted
from inrun.distributed import Processes
from inrun.owners import Ownership
from inrun.utility import swapped

MOST_SEQUENCES = 5  # that are tinted in one run
RARER = 1.5, 4.0  # times as late as the last lone sample comes the next, between these


class OwnerChecks:
    """Decides when blocks are checked, and keeps what was found."""

    def __init__(
        self, model: nn.Module, trained: Mapping[str, Tensor], coverage: Coverage,
        inputs: Inputs, processes: Processes, *, sharded: bool,
    ):  # fmt: skip
        self.model, self._trained, self._coverage = model, dict(trained), coverage
        self._inputs, self._rng = inputs, random.Random(0)
        self._next_lone = 1
        self.notes: dict[str, None] = {}
        self._alone, self._sharded = processes.size == 1, sharded
        self._sequences: set[int] = set()
        self._armed = True
        self._borders: Borders | None = None
        self._step = 1  # that is under way
        self.refused: dict[str, str] = {}
        self._waiting: tuple[ModelCall | None, Callable[[], CaptureMode]] | None = None

    def begin(
        self, mode: CaptureMode, owned: Ownership, *, step: int, keeps_calls: bool
    ) -> Calls | None:
        """A block begins: who is to keep its calls of the model, if anybody.

        `step` is the number of the step under way; `keeps_calls`: an audit asks for all of them.
        """
        self._step = step
        self._borders = None
        self._refuse(mode, self.refused)
        if self._armed and not self._sharded:
            self._borders = Borders()
            mode.owners.sums = self._borders
        elif self._sharded:
            self._coverage.not_checked("both", "parameters are sharded")
        if self._sharded or not (self._wants_lone or keeps_calls):
            return None
        return Calls(owned, self._inputs.axes, mode, first_only=not keeps_calls)

    @property
    def _wants_lone(self) -> bool:
        return self._step >= self._next_lone

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Calls of the model that are made inside leave no trace."""
        with swapped(self._inputs, "silent", True), replaying(self.model):
            yield

    def forget(self, mode: CaptureMode) -> None:
        """Lets go of the graph's nodes, whose hooks know the mode: no collector finds such a ring.

        All that the block captured would stay as long as the program runs.
        """
        self._borders = mode.owners.sums = None

    def end(self, calls: Calls | None, new_mode: Callable[[], CaptureMode]) -> None:
        """A block has ended; its call of the model waits for the step's end, see `step_over`."""
        if calls is not None and self._wants_lone:
            self._waiting = next(iter(calls.found), None), new_mode

    def step_over(self) -> None:
        """Nothing of the step is held any more: its call is made again with one sample alone."""
        if self._waiting is None:
            return
        (call, new_mode), self._waiting = self._waiting, None
        low, high = RARER
        later = self._step * self._rng.uniform(low - 1, high - 1)
        self._next_lone = self._step + max(1, int(later))
        # the model is the user's: it need not run in evaluation mode
        failing = "the model cannot be called again"
        found = self._checked("lone", lambda: self._lone(call, new_mode()), failing)
        if found is not None:
            self._note(found)

    def _checked(self, how: str, check: Callable[[], Verdict], failing: str) -> Verdict | None:
        """What a check found; None, and told why, where it could not be made."""
        try:
            found = check()
        except (CannotReplayError, CannotTellError) as reason:
            self._coverage.not_checked(how, str(reason))
            return None
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            self._coverage.not_checked(how, f"{failing} ({line[:160]})")
            return None
        self._coverage.checked(found.right, how, self._step)
        return found

    def _lone(self, call: ModelCall | None, mode: CaptureMode) -> Verdict:
        if call is None:
            raise CannotReplayError("the model was not called inside the block")
        there = call.present()
        if not there:
            raise CannotReplayError("the model is called with nothing that is some samples'")
        sample = self._rng.choice(there)
        with uncompiled():
            return lone(call, mode, self.model, self._trained, sample, self.hidden)

    def _note(self, found: Verdict) -> None:
        new = {name: why for name, why in found.wrong.items() if name not in self.refused}
        if found.note:
            self.notes[found.note] = None
            self._coverage.not_checked("lone", "a lone sample has other outputs than in its batch")
        if new:
            first = next(iter(new))
            self.notes[
                f"Whose the slots of {first} are ({len(new)} parameters in all) is not what it was "
                f"taken for: {new[first]}. Its part of the values up to here is wrong, and from "
                "now on it is a gap. See attribution.coverage(); rows= and slots= of "
                "attribution.batch say whose the data is."
            ] = None
        self.refused |= new

    def before_backward(self, mode: CaptureMode, starts: Sequence[Tensor], given: Any) -> None:
        """The block's backward pass is about to run."""
        if self._sharded or len(self._sequences) >= MOST_SEQUENCES:
            return
        sequence = hash(tuple(mode.names))
        if sequence in self._sequences:
            return
        if self._borders is None:  # the next such block will be looked at
            self._armed = self._alone
            return
        self._sequences.add(sequence)
        self._armed = False
        self._tint(mode, self._borders, _with_gradients(starts, given))

    def _tint(self, mode: CaptureMode, borders: Borders, starts: Sequence[Start]) -> None:
        parameters = list(self._trained.values())

        def check() -> Verdict:
            with torch._C.DisableTorchFunction():
                return tinted(mode, borders, starts, self.model, parameters, alone=self._alone)

        # a graph that cannot be passed twice: anybody's nodes are in it
        found = self._checked("tinted", check, "a second backward pass failed")
        if found is not None:
            self.refused |= found.wrong
            self._refuse(mode, found.wrong)

    @staticmethod
    def _refuse(mode: CaptureMode, wrong: Mapping[str, str]) -> None:
        mode.missed += [Missed((name,), why, reached=True) for name, why in wrong.items()]


def _with_gradients(starts: Sequence[Tensor], given: Any) -> list[Start]:
    gradients = [given] if given is None or isinstance(given, Tensor) else list(given)
    gradients += [None] * (len(starts) - len(gradients))
    return list(zip(starts, gradients, strict=True))
