"""What momentum pays out: the later effect of a step's samples, without playing anything again.

Under Adam with b1 = 0.9 a tenth of a gradient acts in its own step; the rest acts in later ones, as
part of the null update, whose displacement is linear in the gradients of before. So a step t's
samples have a direction for what they still did:

    X_t = enters_t * sum over s = t+1 .. t+W of gbar_s * slope_s * (product of kept_r, t < r < s)

with `Memory`'s letters and gbar_s the mean validation gradient of step s. The factors of the last W
steps are held, and each step's are contracted with X_t once, W steps later. What X_t has gathered
before that is *still in the momentum*: it is in the ledger's momentum entries, and in no sample's
value yet. Letters: K targets, N samples of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Reading
from inrun.distributed import Processes, is_sharded, whole
from inrun.errors import InRunError, StoreError
from inrun.factors import Contraction, DenseContraction
from inrun.momentum._sliding import SlidingSum
from inrun.momentum._tensor_store import Holding, Kept, TensorStore, holding
from inrun.momentum._waiting import Memories, Paid, WaitingStep, overwritten
from inrun.optim import Memory, Move
from inrun.scoring import BlockValues, Edited, MemoryMark, contracted, mark_of


class Payouts:
    """The steps whose samples are still being paid.

    `contraction` is not the one of immediate values, whose directions have other ranks.
    """

    def __init__(
        self,
        window: int,
        contraction: Contraction,
        targets: int,
        tensor_store: TensorStore,
        processes: Processes,
    ):
        self.window, self.contraction, self._K = window, contraction, targets
        self._tensor_store, self._processes = tensor_store, processes
        self._parameters: dict[str, Tensor] = {}
        self._left: dict[str, MemoryMark | None] = {}
        self._ended: set[str] = set()
        self._sums: dict[str, SlidingSum] = {}
        self._held: deque[WaitingStep] = deque()
        self._failure: InRunError | None = None

    @property
    def waiting(self) -> int:
        return len(self._held)

    # ---- as steps go by

    def remember(self, moving: Mapping[str, tuple[Move[Any, Any], Tensor]]) -> Memories:
        """Before a step: how parameters' earlier gradients will act in it."""
        found = {name: mark_of(move.memorized()) for name, (move, _) in moving.items()}
        return Memories(
            {name: move.memory() for name, (move, _) in moving.items()},
            {name: p for name, (_, p) in moving.items()},
            Edited(self._left, found),
        )

    def end(self, names: Iterable[str]) -> None:
        """Ends these parameters' windows: their memory of all steps so far acts no more."""
        for name in names:
            sliding = self._sums.get(name)
            if sliding is not None and sliding.waits:
                sliding.cut()
                self._ended.add(name)
            self._left.pop(name, None)

    @property
    def names(self) -> set[str]:
        """Of the parameters whose steps are held."""
        return set(self._sums)

    def ended(self) -> list[str]:
        """Parameters whose windows ended before their time since this was last asked."""
        ended, self._ended = sorted(self._ended), set()
        return ended

    def end_step(
        self,
        step: int,
        blocks: Sequence[Block],
        scales: Mapping[str, Tensor | float],
        memories: Memories,
        gradients: Mapping[str, Tensor],
        left: Mapping[str, Move[Any, Any]],
    ) -> list[Paid]:
        """Takes the step's samples in, and pays those that were held for long enough.

        Where something cannot be kept or paid, steps are paid what can be, and `complain` says why
        once the caller has booked that.

        Args:
            step: its number.
            blocks: its samples.
            scales: by parameter, what its shares are multiplied by.
            memories: what `remember` gave before it.
            gradients: by parameter, what earlier gradients acted on in it: the mean validation
                gradients, (K, *shape).
            left: by parameter, what the optimizer goes on from, if nobody edits it.
        """
        try:
            self.end(memories.edited.names())
            self.end(
                n for n, p in memories.parameters.items() if self._parameters.get(n, p) is not p
            )
        except StoreError as lost:
            self._failure = lost
            return self.abandon()
        self._parameters |= memories.parameters
        self._held.append(WaitingStep(step, blocks, scales, self._tensor_store))
        # in one order in all processes, which gather sharded directions one after the other
        for name in dict.fromkeys([*self._sums, *memories.of]):
            memory = memories.of.get(name, Memory(0.0, 1.0, 0.0))  # it was not moved
            sliding = self._sums.setdefault(
                name, SlidingSum(self._tensor_store, len(self._held) - 1)
            )
            term = gradients[name] * memory.slope if name in gradients else None
            sliding.push(term, memory.kept, memory.enters)
        self._left |= {name: mark_of(move.memorized()) for name, move in left.items()}
        paid = self._pay() if len(self._held) > self.window else []
        return paid + self._stop_where_full()

    def _stop_where_full(self) -> list[Paid]:
        """Pays everybody where the store of any process has no place left."""
        if self._tensor_store.can_refuse:
            (fits,) = self._processes.all([self._tensor_store.failure is None])
            if not fits:
                failure, paid = self._tensor_store.failure, self.pay_out()
                self._tensor_store.begin_anew()  # also after what settling could not put there
                self._failure = failure
                return paid
        return []

    def pay_out(self) -> list[Paid]:
        """Pays all steps that are held, what they have earned so far."""
        paid: list[Paid] = []
        while self._held:
            paid += self._pay()
        self._clear()
        return paid

    def abandon(self) -> list[Paid]:
        """Lets all steps go that are held and pays them nothing; no process is waited for."""
        nothing = [Paid(held.step, held.nothing(self._K)) for held in self._held]
        self._clear()
        return nothing

    def complain(self) -> None:
        """Raises what went wrong since it was last asked, if anything did."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def adopt(self, run: str | None) -> None:
        """Gives the tensors on disk to a run, whose resuming removes them after a kill."""
        self._tensor_store.adopt(run)

    def close(self) -> None:
        self._clear()
        self._tensor_store.close()

    def _clear(self) -> None:
        for sliding in self._sums.values():
            sliding.clear()
        for held in self._held:
            held.let_go()
        self._held.clear()
        self._sums, self._left = {}, {}

    # ---- what they are paid

    @torch.no_grad()
    def _pay(self) -> list[Paid]:
        """The oldest step's; where something was lost, nothing to all that are held."""
        held, touched = self._held[0], self._held[0].touched
        if touched is not None:
            self._failure = self._failure or overwritten(held.step, touched)
        values = BlockValues(held.samples, self._K)
        try:
            for name, sliding in self._sums.items():
                direction = sliding.pop()  # also where nobody is paid, so that queues stay in step
                if direction is not None and name in held.scales:
                    self._contract(held, name, direction, self.contraction, values, touched is None)
        except StoreError as lost:
            self._failure = lost
            return self.abandon()
        self.contraction.end_step(Reading)
        self._held.popleft()
        held.let_go()
        return [Paid(held.step, values.fetch())]

    def _contract(
        self,
        held: WaitingStep,
        name: str,
        direction: Tensor,
        contraction: Contraction,
        values: BlockValues,
        pays: bool = True,
    ) -> None:
        """What one parameter pays: to be called by all processes where it is sharded."""
        direction.mul_(held.scale(name))
        p = self._parameters[name]
        if not pays and not is_sharded(p):
            return
        direction = whole(direction, p)
        factors = held.factors(name) if pays else []
        if any(factors):
            for number, values_BK in contracted(contraction, name, factors, direction):
                values.add(number, values_BK)

    @torch.no_grad()
    def owed(self) -> list[Paid]:
        """What is still in the momentum: what `pay_out` would pay now, exactly; changes nothing."""
        values = [BlockValues(held.samples, self._K) for held in self._held]
        for name, sliding in self._sums.items():
            for place, direction in sliding.so_far():
                held = self._held[place]
                if name in held.scales:
                    pays = held.touched is None
                    self._contract(held, name, direction, DenseContraction(), values[place], pays)
        return [Paid(h.step, v.fetch()) for h, v in zip(self._held, values, strict=True)]

    def remaining(self) -> float:
        """Of what the held steps put into the momentum, the share that it has not released yet.

        The mean over parameters, by their elements, and steps.
        """
        shares = [
            (self._parameters[name].numel(), float(np.mean(sliding.remaining())))
            for name, sliding in self._sums.items()
        ]
        elements = sum(n for n, _ in shares)
        return sum(n * share for n, share in shares) / elements if elements else 0.0

    # ---- what it takes

    def held(self) -> Holding:
        """What is held for steps that are still being paid: each storage once."""
        sums = [k for s in self._sums.values() for k in s.kept()]
        return holding(self._of(self._held) + sums) + self._aside()

    def expected(self) -> Holding:
        """The same when the window is full, if steps go on like the last one.

        Known when the first step is in, and to be relied on from the second: only then is seen
        what steps share, such as the data that their inputs are parts of.
        """
        if not self._held:
            return Holding(0, 0)
        before = holding(self._of(list(self._held)[:-1]))
        now = holding(self._of(self._held))
        step = Holding(now.memory - before.memory, now.disk - before.disk)
        missing = self.window - len(self._held)
        return now + step.times(missing) + self._term().times(self.window) + self._aside()

    def free(self) -> int | None:
        """Bytes that are left where they wait; None where that is not known."""
        devices = {p.device for p in self._parameters.values()}
        known = [self._tensor_store.free(device) for device in devices]
        return min((n for n in known if n is not None), default=None)

    @property
    def on_disk(self) -> bool:
        """Whether they wait in files."""
        return self._tensor_store.can_refuse

    @staticmethod
    def _of(steps: Iterable[WaitingStep]) -> list[Kept]:
        return [k for step in steps for k in step.kept]

    def _aside(self) -> Holding:
        found = [s.since for s in self._sums.values() if s.since is not None]
        return Holding(sum(t.numel() * t.element_size() for t in found), 0)

    def _term(self) -> Holding:
        """A step's terms of the sums: one validation gradient per target."""
        found = [s.term_bytes for s in self._sums.values()]
        return self._tensor_store.held(sum(found))
