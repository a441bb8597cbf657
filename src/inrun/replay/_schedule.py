"""Which states of a run are kept, and how the others come back: plain integers.

A run of T steps has the states 0 to T. Those at multiples of an interval are kept, with the last;
going backward, each segment between two kept states is played again from its first one. Letters:
T steps, n interval, C states that the budget has room for.
"""

from __future__ import annotations

from math import ceil, isqrt


def interval_for(steps: int, capacity: int) -> int:
    """The interval for a run whose length is known.

    Every state where they all fit; every sqrt(T)-th where those fit (more would only save memory
    in the replay, which holds at most one segment); else as many as fit.

    Args:
        steps: T.
        capacity: C, at least 2.

    Example:
        >>> [interval_for(100, capacity) for capacity in (200, 50, 5)]
        [1, 10, 25]
    """
    if steps + 1 <= capacity:
        return 1
    root = max(1, isqrt(steps - 1) + 1)
    if ceil(steps / root) + 1 <= capacity:
        return root
    return ceil(steps / max(1, capacity - 1))


def kept_states(steps: int, capacity: int) -> int:
    """How many states a run of a known length keeps, the last one among them.

    Example:
        >>> [kept_states(100, capacity) for capacity in (200, 50, 5)]
        [101, 11, 5]
    """
    return ceil(steps / interval_for(steps, max(2, capacity))) + 1


class Schedule:
    """Says which state to keep next, and which kept ones to give up, as training goes.

    Without a known length every state is kept until the budget is full; then the interval doubles
    and every second one goes.
    """

    def __init__(self, capacity: int, steps: int | None = None):
        self.capacity = max(2, capacity)
        self.interval = 1 if steps is None else interval_for(steps, self.capacity)
        self.kept: list[int] = []

    def due(self, state: int) -> bool:
        """Whether the state after this many steps is to be kept."""
        return state % self.interval == 0

    def keep(self, state: int) -> list[int]:
        """Notes a kept state; returns the states that must go to make room for a last one."""
        self.kept.append(state)
        gone: list[int] = []
        while len(self.kept) >= self.capacity:
            self.interval *= 2
            gone += [s for s in self.kept if s % self.interval]
            self.kept = [s for s in self.kept if s % self.interval == 0]
        return gone


def stops(first: int, last: int, copies: int) -> list[int]:
    """States to hold on the way from `first` to `last`, at most `copies`, `first` among them.

    Example:
        >>> stops(0, 6, 8), stops(0, 6, 3)
        ([0, 1, 2, 3, 4, 5], [0, 2, 4])
    """
    return list(range(first, last, ceil((last - first) / copies)))
