"""SGD and ASGD as `torch.optim` does them: affine in g.

With x = (maximize ? -g : g) + decay * w and momentum buffer B (absent before the first step):

    B' = x                                  first step
    B' = momentum * B + (1 - dampening) * x later
    d  = lr * (nesterov ? x + momentum * B' : B')

Slope, tangent and linearization are one number, and the derivative is the rule itself. ASGD, with
eta its present rate (its average does not act on the weights):

    d  = eta * (x + lambd * w)
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.optim._derivative import Along, FirstOrder, PostStepTerms, StepDerivative
from inrun.optim._move import Move
from inrun.optim._rule import (
    Diagonal,
    History,
    Linearized,
    Live,
    Memory,
    Momentum,
    Rule,
    Setting,
    State,
    entering,
    numbers_of,
)


class AffineRule(Rule[State, Setting]):
    """A rule whose slope is the same number for every element and every gradient."""

    affine = True

    @abstractmethod
    def number(self, s: State, h: Setting) -> float:
        """The slope."""

    def slope(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Diagonal:
        return Diagonal(self.number(s, h))

    def tangent(self, g: Tensor, w: Tensor, s: State, h: Setting) -> Diagonal:
        return Diagonal(self.number(s, h))


class SGDState(NamedTuple):
    """The momentum buffer, None before the first step or without momentum."""

    buffer: Tensor | None


class SGDSetting(NamedTuple):
    lr: float
    momentum: float
    dampening: float
    decay: float
    nesterov: bool
    maximize: bool


def _carried(h: SGDSetting) -> float:
    """What of the buffer is displaced, before the learning rate."""
    return h.momentum * (h.momentum if h.nesterov else 1.0)


def _enters(s: SGDState, h: SGDSetting) -> float:
    """What of x enters the buffer."""
    return 1.0 if s.buffer is None else 1.0 - h.dampening


def _gain(s: SGDState, h: SGDSetting) -> float:
    """How much of x is displaced in this step, before the learning rate."""
    if h.momentum == 0:
        return 1.0
    return 1.0 + h.momentum * _enters(s, h) if h.nesterov else _enters(s, h)


class LinearSGD(Linearized):
    """The rule is affine already: slope and history are its own."""

    def slope(self, w: Tensor, s: SGDState, h: SGDSetting) -> Diagonal:
        return Diagonal((-h.lr if h.maximize else h.lr) * _gain(s, h))

    def history(self, w: Tensor, s: SGDState, h: SGDSetting) -> History:
        momentum = 0.0 if s.buffer is None else h.lr * _carried(h) * s.buffer
        return History(momentum, h.lr * _gain(s, h) * h.decay * w if h.decay else 0.0)


class Buffer(Momentum):
    """What is remembered is the momentum buffer."""

    def memory(self, w: Tensor, s: SGDState, h: SGDSetting) -> Memory:
        enters = (-1.0 if h.maximize else 1.0) * _enters(s, h)
        return Memory(0.0 if s.buffer is None else h.lr * _carried(h), h.momentum, enters)

    def remembered(self, s: SGDState) -> Tensor | None:
        return s.buffer


class SGDDerivative(StepDerivative):
    """SGD; it is affine, so the maps are the rule itself."""

    def moments(self, move: Move[SGDState, SGDSetting]) -> int:
        """The momentum buffer, if there is momentum."""
        return int(move.setting.momentum != 0)

    def pull(self, move: Move[SGDState, SGDSetting], after: Along) -> tuple[Along, Tensor]:
        h = move.setting
        a_moved = -h.lr * after.weight
        moments: tuple[Tensor, ...] = ()
        if h.momentum == 0:
            a_x = a_moved
        else:
            enters, stays = _enters(move.state, h), 0.0 if move.state.buffer is None else h.momentum
            a_buffer = after.moments[0] + (h.momentum if h.nesterov else 1.0) * a_moved
            a_x = enters * a_buffer + (a_moved if h.nesterov else 0.0)
            moments = (stays * a_buffer,)
        return Along(after.weight + h.decay * a_x, moments), -a_x if h.maximize else a_x

    def push(self, move: Move[SGDState, SGDSetting], before: Along, dg: Tensor) -> Along:
        h = move.setting
        dx = entering(dg, before.weight, h)
        if h.momentum == 0:
            return Along(before.weight - h.lr * dx, ())
        enters, stays = _enters(move.state, h), 0.0 if move.state.buffer is None else h.momentum
        buffer = stays * before.moments[0] + enters * dx
        moved = dx + h.momentum * buffer if h.nesterov else buffer
        return Along(before.weight - h.lr * moved, (buffer,))

    def moved(self, move: Move[SGDState, SGDSetting], gradient: Tensor) -> Along:
        rule, w, s, h = move.rule, move.weight, move.state, move.setting
        buffer = rule.advance(gradient, w, s, h).buffer
        moved = -rule.displacement(gradient, w, s, h)
        return Along(moved, () if h.momentum == 0 or buffer is None else (buffer,))

    def shifted(
        self, move: Move[SGDState, SGDSetting], moments: tuple[Tensor, ...]
    ) -> Move[SGDState, SGDSetting]:
        buffer = move.state.buffer
        state = SGDState(buffer if buffer is None or not moments else buffer + moments[0])
        return Move(move.rule, move.weight, move.gradient, state, move.setting)

    def following(self, move: Move[SGDState, SGDSetting], steps: int) -> PostStepTerms:
        return FirstOrder()


class SGDRule(AffineRule[SGDState, SGDSetting]):
    """`torch.optim.SGD`."""

    linearized = LinearSGD()
    momentum = Buffer()
    derivative = SGDDerivative()

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[SGDState, SGDSetting]:
        numbers = numbers_of(group, "lr", "momentum", "dampening", "weight_decay")
        setting = SGDSetting._make([*numbers, group["nesterov"], group["maximize"]])
        return SGDState(state.get("momentum_buffer")), setting

    def number(self, s: SGDState, h: SGDSetting) -> float:
        return (-h.lr if h.maximize else h.lr) * _gain(s, h)

    def displacement(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> Tensor:
        history = self.history(w, s, h)
        return self.number(s, h) * g + history.momentum + history.decay

    def history(self, w: Tensor, s: SGDState, h: SGDSetting) -> History:
        return self.linearized.history(w, s, h)

    def advance(self, g: Tensor, w: Tensor, s: SGDState, h: SGDSetting) -> SGDState:
        if h.momentum == 0:
            return s
        x = entering(g, w, h)
        if s.buffer is None:
            return SGDState(torch.clone(x))
        return SGDState(h.momentum * s.buffer + (1.0 - h.dampening) * x)


class ASGDState(NamedTuple):
    """The rate of the coming step, and how many were taken."""

    eta: float
    steps: int


class ASGDSetting(NamedTuple):
    lr: float
    lambd: float
    alpha: float
    decay: float
    maximize: bool


class ASGDRule(AffineRule[ASGDState, ASGDSetting]):
    """`torch.optim.ASGD`; `lambd` is a decay by another name."""

    def read(self, group: Live, state: Live, weight: Tensor) -> tuple[ASGDState, ASGDSetting]:
        numbers = numbers_of(group, "lr", "lambd", "alpha", "weight_decay")
        setting = ASGDSetting._make([*numbers, group["maximize"]])
        if not state:
            return ASGDState(_rounded(setting.lr), 0), setting
        return ASGDState(float(state["eta"]), int(state["step"])), setting

    def number(self, s: ASGDState, h: ASGDSetting) -> float:
        return -s.eta if h.maximize else s.eta

    def displacement(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> Tensor:
        return s.eta * entering(g, w, h) + s.eta * h.lambd * w

    def advance(self, g: Tensor, w: Tensor, s: ASGDState, h: ASGDSetting) -> ASGDState:
        eta = h.lr / (1 + h.lambd * h.lr * (s.steps + 1)) ** h.alpha
        return ASGDState(_rounded(eta), s.steps + 1)


def _rounded(eta: float) -> float:
    """As the optimizer keeps it: a tensor of the default precision."""
    return float(torch.tensor(eta))
