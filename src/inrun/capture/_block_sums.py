"""Sums of a block's shares along their random directions; of large ones in turn.

Shares are wrong because of the model or the loop, and in every step alike (a rule, a hook, a
penalty): no reason to read each layer's activations once more for it in every step. `CheckSchedule`
says whose shares are compared in a step, of large ones a quarter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from inrun.capture._measured import Rows
from inrun.capture._probe import Probes, eps_of, is_small
from inrun.factors import Dense, Factor

WAITING = 4_000_000  # numbers of small parameters' shares that wait to be met together
LARGE = 65_536  # elements that a factor holds; smaller ones are compared in every step
FIRST_STEPS = 8  # in which all are compared
PHASES = 4


class BlockSums:
    """The sums of one block's shares, and of their sizes; `present` are parameters with some.

    `computed`, by parameter eps of what its shares are made of, is kept up to date here.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], probes: Probes, schedule: CheckSchedule,
        computed: dict[str, float],
    ):  # fmt: skip
        self._parameters, self._probes = parameters, probes
        self._schedule, self._computed = schedule, computed
        self.discard()

    def discard(self) -> None:
        self.present: set[str] = set()
        self._alone: dict[str, tuple[Tensor, Tensor]] = {}
        self._small: list[tuple[str, Factor]] = []  # shares that are met together
        self._waiting = 0  # numbers in them
        self._met: list[tuple[list[str], Tensor]] = []

    def add(self, name: str, factor: Factor, *, early: bool = False) -> None:
        """Adds a factor's shares.

        `early`: it was built inside the backward pass, so that its activations are not to wait for
        the block's end.
        """
        self.present.add(name)
        eps, held = 0.0, 0
        for t in factor.held:
            eps, held = max(eps, eps_of(t.dtype)), held + t.numel()
        self._computed[name] = max(self._computed.get(name, 0.0), eps)
        if not self._schedule.asks(name, held):
            return
        early = early and type(factor) is not Dense
        if not early and is_small(self._parameters[name], factor, held):
            self._small.append((name, factor))
            self._waiting += held
            if self._waiting > WAITING:
                self._meet_small()
            return
        products = self._probes[name].of_shares(factor)
        total, size = self._alone.get(name, (products.new_zeros(()), products.new_zeros(())))
        self._alone[name] = total + products.sum(), size + products.abs().sum()

    def leave_out(self, names: Collection[str]) -> None:
        """Forgets shares of these; sums that were made already are left out by who reads them."""
        self._small = [(name, factor) for name, factor in self._small if name not in names]
        for name in names:
            self._alone.pop(name, None)
            self.present.discard(name)

    def _meet_small(self) -> None:
        self._met += self._probes.of_small_shares(self._small)
        self._small, self._waiting = [], 0

    def rows(self) -> Rows:
        """Both sums by parameter, on their way from the device."""
        self._meet_small()
        groups = list(self._met)
        if self._alone:
            rows = torch.stack([torch.stack(pair).double() for pair in self._alone.values()])
            groups.append((list(self._alone), rows))
        return Rows.of(groups)


class CheckSchedule:
    """Asked for each factor of a step; the answer is one for all of a parameter's.

    `always`: whether all are compared in every step.
    """

    def __init__(self, *, always: bool):
        self._always = always
        self._large: list[str] = []
        self._met: dict[str, None] = {}  # large ones that this step was the first to show
        self._now: set[str] = set()
        self.steps = 0

    @property
    def takes_turns(self) -> bool:
        """Whether some are left out in this step."""
        return not self._always and self.steps >= FIRST_STEPS

    def stop_turns(self) -> None:
        """From now on all are compared in every step."""
        self._always = True

    def compares(self, name: str) -> bool:
        """Whether a parameter's are compared in this step, as far as it is known."""
        return self._always or name in self._now or name not in self._large

    def asks(self, name: str, size: int) -> bool:
        """The same of a factor that holds so many numbers."""
        if not self.compares(name):
            return False
        if size > LARGE:
            self._met[name] = None
        return True

    def next_step(self, blocks: int) -> None:
        """Goes on to those of the next step.

        Whether earlier ones of the `blocks` of a step are in a gradient at all is told by the
        comparison too, so that where they accumulate all are compared.
        """
        self.steps += 1
        self._large += [name for name in self._met if name not in self._large]
        self._met = {}
        every = self.steps < FIRST_STEPS or blocks > 1
        phases = 1 if every else max(1, min(PHASES, len(self._large)))
        self._now = set(self._large[self.steps % phases :: phases])
