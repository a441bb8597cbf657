"""In which order several processes reduce their gradients: the same one in all of them.

Gradients come in by the order of each process's own graph, and processes whose orders differ would
add one parameter's gradient to another's. So each parameter has its turn, and one that is ready
earlier waits. The turns are those of the first process's first backward pass; until that is known,
the reverse of the parameters' order, in which gradients mostly come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from inrun.distributed import Processes


class Turns:
    """Each parameter's place in a block's backward pass; with one process, just as they come."""

    def __init__(self, names: Iterable[str], processes: Processes):
        self._processes = processes
        self._order = list(reversed(list(names)))
        self._learned = False
        self.begin()

    def begin(self) -> None:
        """A block begins."""
        self._next, self._ready, self._came = 0, set[str](), dict[str, None]()

    def ready(self, name: str) -> Iterator[str]:
        """A gradient came in: whose turn it is now, perhaps nobody's."""
        if self._processes.size == 1:
            yield name
            return
        self._came[name] = None
        self._ready.add(name)
        while self._next < len(self._order) and self._order[self._next] in self._ready:
            self._next += 1
            yield self._order[self._next - 1]

    def rest(self, late: set[str]) -> Iterator[str]:
        """The backward pass is over: who has had no turn yet, and who must have another.

        Args:
            late: those of which something came in after their turn, in this process.
        """
        if self._processes.size == 1:
            return
        waiting = self._order[self._next :]
        yield from waiting
        none_late = self._processes.all([n not in late or n in waiting for n in self._order])
        yield from [n for n, none in zip(self._order, none_late, strict=True) if not none]
        if not self._learned:
            came = self._processes.gathered(list(self._came))[0]
            self._order = [*came, *(name for name in self._order if name not in came)]
            self._learned = True
