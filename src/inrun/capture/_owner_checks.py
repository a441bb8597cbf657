"""Owners checked on the training's own batches, and what became of it.

Two checks, each blind where the other sees: tinted gradients (`_tinted`), in the first block and
whenever the sequence of operations changes, in training mode and through the whole loss; and a lone
sample (`_lone`), at a few random steps, which trusts nothing that was followed but runs in
evaluation mode and through the model's call only. Where one disagrees the parameter is a gap from
then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._coverage import Coverage
from inrun.capture._mode import CaptureMode
from inrun.capture._processes import Processes
from inrun.capture._tinted import Borders, CannotTellError, Start, tinted
from inrun.capture._uses import Missed

MOST_SEQUENCES = 5  # that are tinted in one run


class OwnerChecks:
    """Decides when blocks are checked, and keeps what was found.

    Args:
        model: whose blocks they are.
        trained: its scored parameters by name.
        coverage: that is told.
        processes: that train together.
        sharded: whether parameters are.
    """

    def __init__(
        self, model: nn.Module, trained: Mapping[str, Tensor], coverage: Coverage,
        processes: Processes, *, sharded: bool,
    ):  # fmt: skip
        self._model, self._trained, self._coverage = model, dict(trained), coverage
        self._alone, self._sharded = processes.size == 1, sharded
        self._sequences: set[int] = set()
        self._armed = True
        self._borders: Borders | None = None
        self.step = 1  # that is under way
        self.refused: dict[str, str] = {}

    def begin(self, mode: CaptureMode) -> None:
        """A block begins."""
        self._borders = None
        self._refuse(mode, self.refused)
        if self._armed and not self._sharded:
            self._borders = Borders()
            mode.owners.sums = self._borders
        elif self._sharded:
            self._coverage.not_checked("parameters are sharded")

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
        try:
            with torch._C.DisableTorchFunction():
                found = tinted(
                    mode, borders, starts, self._model, parameters, alone=self._alone
                )
        except CannotTellError as why:
            self._coverage.not_checked(str(why))
            return
        except Exception as error:  # a graph that cannot be passed twice: anybody's nodes are in it
            self._coverage.not_checked(f"a second backward pass failed ({_first_line(error)})")
            return
        self._coverage.checked(found.right, "tinted", self.step)
        self.refused |= found.wrong
        self._refuse(mode, found.wrong)

    @staticmethod
    def _refuse(mode: CaptureMode, wrong: Mapping[str, str]) -> None:
        mode.missed += [Missed((name,), why, reached=True) for name, why in wrong.items()]


def _with_gradients(starts: Sequence[Tensor], given: Any) -> list[Start]:
    gradients = [given] if given is None or isinstance(given, Tensor) else list(given)
    gradients += [None] * (len(starts) - len(gradients))
    return list(zip(starts, gradients, strict=True))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:160]
