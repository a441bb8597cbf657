"""Where a step with attribution spends its own time: seconds in its parts, each without the others.

The parts are functions of the library, timed from outside while a few steps run.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inrun.capture import Hold, _gradient_check, _measured, _mode
from inrun.directions import Path
from inrun.factors import Outer, _contraction
from inrun.scoring import Step, _validation

PARTS: tuple[tuple[Any, str, str], ...] = (
    (_validation, "evaluate", "validation pass"),
    (Path, "settled", "direction and books, after the step"),
    (Path, "slope", "slope, inside the backward pass"),
    (_contraction, "factorize", "factorizing directions"),
    (Outer, "contract_low_rank", "low-rank contraction"),
    (Outer, "contract", "dense contraction"),
    (_gradient_check.GradientCheck, "add", "invariant: shares"),
    (_measured.Measuring, "measure", "invariant: gradients"),
    (Hold, "_collect", "building factors"),
    (_mode.CaptureMode, "_note", "seeing operations"),
    (_validation, "WeightsMark", "whether weights moved"),
    (Step, "take_down", "before the step, the rest"),
    (Step, "plan", "before the step, the rest"),
    (Step, "score", "after the step, the rest"),
    (Step, "contract", "stream, the rest"),
)


class Clock:
    """Seconds by part, nested parts taken out of what they are in."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same function, on the clock."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = _now()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                passed, inner = _now() - began, self._inner.pop()
                self.seconds[part] += passed - inner
                if self._inner:
                    self._inner[-1] += passed

        return call


def _now() -> float:
    """Once a GPU has done all that it was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def on_the_clock() -> Iterator[Counter[str]]:
    """Seconds by part of what runs inside."""
    clock, before = Clock(), [(owner, name, getattr(owner, name)) for owner, name, _ in PARTS]
    try:
        for (owner, name, part), (_, _, function) in zip(PARTS, before, strict=True):
            setattr(owner, name, clock.timed(function, part))
        yield clock.seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
