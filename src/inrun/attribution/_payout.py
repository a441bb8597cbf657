"""What momentum pays out: the later effect of a step's samples, without playing anything again.

Under Adam with b1 = 0.9 a tenth of a gradient acts in its own step; the rest acts in later ones, as
part of the null update, whose displacement is linear in the gradients of before. So a step t's
samples have a direction for what they still did:

    X_t = enters_t * sum over s = t+1 .. t+W of gbar_s * slope_s * (product of kept_r, t < r < s)

with `Memory`'s letters and gbar_s the mean validation gradient of step s. The factors of the last W
steps are held, and each step's are contracted with X_t once, W steps later.

A sum over the last W steps that slides on by one each step, without subtracting (which would lose
digits) and with one addition a step: the newer steps' terms are kept one by one and summed as a
whole; when the older ones are used up, they are turned into sums from each to the last. Letters: K
targets, N samples of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block
from inrun.factors import Contraction
from inrun.optim import Memory


class Paid(NamedTuple):
    """A step's number, and what its samples were paid, (N, K) float64."""

    step: int
    values: np.ndarray


class _Held(NamedTuple):
    """A step that is still being paid: its samples, and what their shares are multiplied by."""

    step: int
    blocks: list[Block]
    scales: dict[str, Tensor | float]


class Payouts:
    """The steps whose samples are still being paid.

    Args:
        window: W.
        contraction: how directions meet factors; not the one of immediate values, whose directions
            have other ranks.
        targets: K.
    """

    def __init__(self, window: int, contraction: Contraction, targets: int):
        self.window, self.contraction, self._K = window, contraction, targets
        self._memories: dict[str, Memory] = {}
        self._earned: dict[str, Tensor] = {}
        self._sums: dict[str, _SlidingSum] = {}
        self._held: deque[_Held] = deque()

    @property
    def waiting(self) -> int:
        """How many steps are held."""
        return len(self._held)

    def held_bytes(self) -> int:
        """What is held for steps that are still being paid: each storage once."""
        tensors = [t for sliding in self._sums.values() for t in sliding.tensors()]
        tensors += [
            t
            for held in self._held
            for block in held.blocks
            for factors in block.factors.values()
            for factor in factors
            for t in factor.held
        ]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def remember(self, name: str, memory: Memory) -> None:
        """Before a step: how a parameter's earlier gradients will act in it."""
        self._memories[name] = memory

    def earn(self, name: str, gradient_K: Tensor) -> None:
        """After it: what they acted on.

        Args:
            name: the parameter's.
            gradient_K: the mean validation gradients, (K, *shape).
        """
        slope = self._memories[name].slope
        self._earned[name] = gradient_K * slope  # a number for SGD
        self._memories[name] = self._memories[name]._replace(slope=0.0)

    def end_step(
        self, step: int, blocks: Sequence[Block], scales: Mapping[str, Tensor | float]
    ) -> Paid | None:
        """Takes the step's samples in, and pays those that were held for long enough."""
        self._held.append(_Held(step, list(blocks), dict(scales)))
        for name in {*self._memories, *self._sums}:
            memory = self._memories.get(name, Memory(0.0, 1.0, 0.0))  # it was not moved
            sliding = self._sums.setdefault(name, _SlidingSum(len(self._held) - 1))
            sliding.push(self._earned.get(name), memory.kept, memory.enters)
        self._memories, self._earned = {}, {}
        return self._pay() if len(self._held) > self.window else None

    def settle(self) -> list[Paid]:
        """Pays all steps that are held, what they have earned so far."""
        paid = [self._pay() for _ in range(len(self._held))]
        self._sums, self._memories, self._earned = {}, {}, {}
        return paid

    def forget_step(self) -> None:
        """A step that was read was not taken after all."""
        self._memories, self._earned = {}, {}

    @torch.no_grad()
    def _pay(self) -> Paid:
        for block in self._held[0].blocks:
            block.check_untouched()  # before anything is taken out, so that queues stay in step
        held = self._held.popleft()
        samples = [block.samples for block in held.blocks]
        total = np.zeros((sum(samples), self._K))
        sums: dict[torch.device, list[Tensor]] = {}
        for name, sliding in self._sums.items():
            direction = sliding.pop()
            factors = [block.factors.get(name, []) for block in held.blocks]
            if direction is None or name not in held.scales or not any(factors):
                continue
            direction.mul_(held.scales[name])
            everything = [factor.on(direction.device) for part in factors for factor in part]
            found = iter(self.contraction.contract(name, everything, direction))
            for number, part in enumerate(factors):
                for _ in part:
                    values_BK = next(found)
                    rows = sums.setdefault(
                        values_BK.device,
                        [values_BK.new_zeros(n, self._K, dtype=_wide(values_BK)) for n in samples],
                    )
                    rows[number] += values_BK
        self.contraction.end_step()
        for rows in sums.values():
            total += torch.cat(rows).cpu().double().numpy()
        return Paid(held.step, total)


class _SlidingSum:
    """For one parameter: X_t of the oldest step that is held, as steps come and go.

    `_older`: (enters_t, X_t up to the turn, product of what was kept since t up to there) of steps
    before the last turn; `_newer`: (term, kept, enters) of the steps since. `_since`: the sum of
    the newer terms as the step of the turn sees it, `_kept` what was kept from there till now.

    Args:
        missed: how many held steps came before the parameter was first moved.
    """

    def __init__(self, missed: int = 0):
        self._older: deque[tuple[float, Tensor | None, float]] = deque()
        self._newer: list[tuple[Tensor | None, float, float]] = [(None, 1.0, 0.0)] * missed
        self._since: Tensor | None = None
        self._kept = 1.0

    def push(self, term: Tensor | None, kept: float, enters: float) -> None:
        """One step on."""
        if term is not None and self._older:
            self._since = (
                term * self._kept if self._since is None
                else self._since.add_(term, alpha=self._kept)
            )  # fmt: skip
        self._kept *= kept
        self._newer.append((term, kept, enters))

    def pop(self) -> Tensor | None:
        """X of the oldest step, which is dropped; None where it is 0."""
        if not self._older:
            self._turn()
        enters, reached, kept = self._older.popleft()
        since = None if self._since is None else self._since * kept
        whole = since if reached is None else reached if since is None else reached.add_(since)
        return None if whole is None or enters == 0 else whole.mul_(enters)

    def _turn(self) -> None:
        reached: Tensor | None = None
        product = 1.0
        for number in range(len(self._newer) - 1, -1, -1):
            term, kept, enters = self._newer[number]
            self._older.appendleft((enters, reached, product))
            # one step earlier sees this step's term, and of what came later what this step kept
            if reached is not None:
                term = reached * kept if term is None else term.add_(reached, alpha=kept)
            reached, product = term, product * kept
        self._newer, self._since, self._kept = [], None, 1.0

    def tensors(self) -> list[Tensor]:
        """Whatever it holds."""
        found = [reached for _, reached, _ in self._older] + [term for term, _, _ in self._newer]
        return [t for t in [*found, self._since] if t is not None]


def _wide(t: Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64  # mps has no doubles
