"""SGD as `torch.optim.SGD` does it: momentum, dampening, Nesterov, coupled weight decay.

With x = (maximize ? -g : g) + decay * w and momentum buffer B (absent before the first step):

    B' = x                                  first step
    B' = momentum * B + (1 - dampening) * x later
    d  = lr * (nesterov ? x + momentum * B' : B')

d is affine in g, so slope, tangent and linearization are one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim._rule import History, Memory, Rule
from inrun.optim._slope import Diagonal


class SGDState(NamedTuple):
    """The momentum buffer, None before the first step or without momentum."""

    buffer: Tensor | None


class SGDSetting(NamedTuple):
    """The parameter group's numbers."""

    lr: float
    momentum: float
    dampening: float
    decay: float
    nesterov: bool
    maximize: bool


class SGDRule(Rule[SGDState, SGDSetting]):
    """`torch.optim.SGD`."""

    linearizes = remembers = True

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[SGDState, SGDSetting]:
        """See `Rule.read`."""
        setting = SGDSetting(
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        return SGDState(state.get("momentum_buffer")), setting

    def _gain(self, s: SGDState, h: SGDSetting) -> float:
        """How much of x is displaced in this step, before the learning rate."""
        if h.momentum == 0:
            return 1.0
        entering = 1.0 if s.buffer is None else 1.0 - h.dampening
        return 1.0 + h.momentum * entering if h.nesterov else entering

    def displacement(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> Tensor:
        """See `Rule.displacement`."""
        history = self.history(w, s, h)
        return self._slope(s, h) * g + history.momentum + history.decay

    def history(self, w: Tensor, s: SGDState, h: SGDSetting) -> History:
        """See `Rule.history`."""
        carried = h.momentum * (h.momentum if h.nesterov else 1.0)
        momentum = 0.0 if s.buffer is None else h.lr * carried * s.buffer
        decay = h.lr * self._gain(s, h) * h.decay * w if h.decay else 0.0
        return History(momentum, decay)

    def memory(self, w: Tensor, s: SGDState, h: SGDSetting) -> Memory:
        """See `Rule.memory`: what is remembered is the buffer."""
        entering = 1.0 if s.buffer is None else 1.0 - h.dampening
        enters = (-1.0 if h.maximize else 1.0) * entering
        carried = h.momentum * (h.momentum if h.nesterov else 1.0)
        return Memory(0.0 if s.buffer is None else h.lr * carried, h.momentum, enters)

    def memorized(self, s: SGDState) -> Tensor | None:
        """See `Rule.memorized`."""
        return s.buffer

    def _slope(self, s: SGDState, h: SGDSetting) -> float:
        """One number for every element and every g: d is affine."""
        return (-1.0 if h.maximize else 1.0) * h.lr * self._gain(s, h)

    def slope(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> Diagonal:
        """See `Rule.slope`."""
        return Diagonal(self._slope(s, h))

    def tangent(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> Diagonal:
        """See `Rule.tangent`."""
        return Diagonal(self._slope(s, h))

    def linearization(self, w: Tensor, s: SGDState, h: SGDSetting) -> Diagonal:
        """The rule is linear already: this is the slope."""
        return Diagonal(self._slope(s, h))

    def linearized_history(self, w: Tensor, s: SGDState, h: SGDSetting) -> History:
        """The rule is linear already: this is the history."""
        return self.history(w, s, h)

    def advance(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> SGDState:
        """See `Rule.advance`."""
        if h.momentum == 0:
            return s
        x = (-g if h.maximize else g) + h.decay * w
        if s.buffer is None:
            return SGDState(torch.clone(x))
        return SGDState(h.momentum * s.buffer + (1.0 - h.dampening) * x)

    def steps_taken(self, s: SGDState) -> None:
        """SGD does not start like a sign."""
        return
