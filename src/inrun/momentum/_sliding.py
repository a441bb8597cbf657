"""A sum over the last W steps that slides on by one each step, as each step's own samples see it.

Without subtracting, which would lose digits, and with one addition a step: the newer steps' terms
are kept one by one and summed as a whole; when the older ones are used up, they are turned into
sums from each to the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from inrun.momentum._tensor_store import Kept, TensorStore


class SlidingSum:
    """For one parameter: X_t of every step that is held, as steps come and go.

    X_t = enters_t * sum over s > t of term_s * (product of kept_r, t < r < s).

    `_older`: (enters_t, X_t up to the turn, product of what was kept since t up to there) of steps
    before the last turn; `_newer`: (term, kept, enters) of the steps since. `since`: the sum of
    the newer terms as the step of the turn sees it, `_kept` what was kept from there till now.

    Args:
        tensor_store: where the terms and sums wait.
        missed: how many held steps came before the parameter was first moved.
    """

    def __init__(self, tensor_store: TensorStore, missed: int = 0):
        self._tensor_store = tensor_store
        self._older: deque[tuple[float, Kept | None, float]] = deque()
        self._newer: list[tuple[Kept | None, float, float]] = [(None, 1.0, 0.0)] * missed
        self.since: Tensor | None = None
        self._kept = 1.0
        self.term_bytes = 0

    def push(self, term: Tensor | None, kept: float, enters: float) -> None:
        self.term_bytes = self.term_bytes if term is None else term.numel() * term.element_size()
        if term is not None and self._older:
            self.since = (
                term * self._kept if self.since is None
                else self.since.add_(term, alpha=self._kept)
            )  # fmt: skip
        self._kept *= kept
        self._newer.append((None if term is None else self._tensor_store.keep(term), kept, enters))

    def pop(self) -> Tensor | None:
        """X of the oldest step, which is dropped; None where it is 0."""
        if not self._older:
            self._turn()
        enters, reached, kept = self._older.popleft()
        since = None if self.since is None or not kept else self.since * kept
        if reached is None:
            whole = since
        else:
            whole = reached.take() if since is None else reached.take().add_(since)
        return None if whole is None or enters == 0 else whole.mul_(enters)

    def cut(self) -> None:
        """Nothing that is remembered acts any more: every X stays what it is now."""
        before, self._older = self._older, deque()
        since = self.since
        self._turn()
        for enters, reached, kept in reversed(before):
            if since is not None and kept:
                whole = since * kept
                whole = whole if reached is None else reached.take().add_(whole)
                reached = self._tensor_store.keep(whole)
            self._older.appendleft((enters, reached, 0.0))
        self._older = deque((enters, reached, 0.0) for enters, reached, _ in self._older)

    @property
    def waits(self) -> bool:
        """Whether later steps still add to what any held step has."""
        return any(enters for _, _, enters in self._newer) or any(
            enters and kept for enters, _, kept in self._older
        )

    def _turn(self) -> None:
        reached: Tensor | None = None
        product = 1.0
        for term, kept, enters in reversed(self._newer):
            seen = None if reached is None else self._tensor_store.keep(reached)
            self._older.appendleft((enters, seen, product))
            # one step earlier sees this step's term, and of what came later what this step kept
            own = None if term is None else term.take()
            if reached is not None:
                own = reached * kept if own is None else own.add_(reached, alpha=kept)
            reached, product = own, product * kept
        self._newer, self.since, self._kept = [], None, 1.0

    def so_far(self) -> Iterator[tuple[int, Tensor]]:
        """X of each step that is held, by its place, 0 the oldest; where it is not 0.

        Nothing is changed.
        """
        for place, (enters, reached, kept) in enumerate(self._older):
            since = None if self.since is None or not kept else self.since * kept
            whole = since if reached is None else reached.look() if since is None \
                else since.add_(reached.look())  # fmt: skip
            if whole is not None and enters:
                yield place, whole * enters
        later: Tensor | None = None
        for number in reversed(range(len(self._newer))):
            term, kept, enters = self._newer[number]
            if later is not None and enters:
                yield len(self._older) + number, later * enters
            own = None if term is None else term.look()
            if later is not None:
                own = later * kept if own is None else own.add(later, alpha=kept)
            later = own

    def remaining(self) -> list[float]:
        """What is left in the memory of each held step's gradient, of 1 when it entered."""
        left = [kept * self._kept for _, _, kept in self._older]
        product, newer = 1.0, []
        for _, kept, _ in reversed(self._newer):
            newer.append(product)
            product *= kept
        return left + newer[::-1]

    def kept(self) -> list[Kept]:
        """Whatever is in the store."""
        found = [reached for _, reached, _ in self._older] + [term for term, _, _ in self._newer]
        return [k for k in found if k is not None]

    def clear(self) -> None:
        for k in self.kept():
            k.let_go()
