"""A block of samples for loops that leave no place for a `with`.

It is begun by one call of theirs and over with the first backward pass after it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, suppress


class OpenBlock:
    """At most one block that is open."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def begin(self, block: AbstractContextManager[None]) -> None:
        """Enters a block."""
        self._stack.enter_context(block)

    def close(self) -> None:
        """Leaves the block, if one is open."""
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def abandon(self) -> None:
        """Leaves a block whose pass failed, as an exception would."""
        stack, self._stack = self._stack, ExitStack()
        with suppress(_GivenUpError):
            stack.__exit__(_GivenUpError, _GivenUpError(), None)


class _GivenUpError(Exception):
    """Thrown into a block that is not to be scored."""
