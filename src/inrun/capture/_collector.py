"""Keeps Python's cyclic garbage collector out of a step's way.

A step of many small operations makes tens of thousands of objects that live until it is over. The
collector, which is set off by how many were made, walked all objects of the program in nearly every
step of 2,000 operations: a fifth of a second, more than a plain step took. None of them is garbage
before the step has gone, and then reference counts free them.
"""

from __future__ import annotations

import gc
from types import TracebackType


class Resting:
    """The collector rests inside; where somebody has switched it off already, it stays off."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._was_on:
            gc.enable()
