"""The derivative of one optimizer step, (w, s, g) -> (w', s'), in both directions.

A trajectory is a chain of steps. To see a sample's effect many steps later, a perturbation is
pushed forward through the chain, or the later loss's gradient is pulled back through it. Both are
linear maps, each the other's transpose, written out here for Adam and SGD (see `_automatic.py` for
the other rules): autograd would give 0 * inf where nothing has touched an element yet (sqrt at 0).
There the slope counts 0, as in `Rule`.

For Adam with x the gradient that enters the moments (see `_adam.py`), M and V the new moments,
r = sqrt(V/c2), A = r + eps, and with primes for what is after the step:

    push   dM = b1 dm + (1 - b1) dx,   dV = b2 dv + 2 (1 - b2) x dx,   dx = +-dg [+ decay dw]
           dw' = (1 - lr decay) dw - lr/c1 (dM / A - M dV / (2 c2 r A^2))
    pull   aM = am' - lr/c1 aw' / A,   aV = av' + lr/c1 M aw' / (2 c2 r A^2)
           q = +-((1 - b1) aM + 2 (1 - b2) x aV),   am = b1 aM,   av = b2 aV

q is the loss's derivative in the consumed gradient: the direction of look-ahead. Tensors may have
leading axes (K targets, or samples) before the move's own shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.kernels import flat
from inrun.optim._adam import AdamSetting, AdamState
from inrun.optim._rule import Move
from inrun.optim._sgd import SGDSetting, SGDState


class Along(NamedTuple):
    """A change of (w, s), or a loss's gradient in them: one tensor for w, one for each moment."""

    weight: Tensor
    moments: tuple[Tensor, ...]


class StepDerivative(ABC):
    """One rule's linear maps."""

    @abstractmethod
    def moments(self, move: Move[Any, Any]) -> int:
        """How many tensors the state has."""

    @abstractmethod
    def pull(self, move: Move[Any, Any], after: Along) -> tuple[Along, Tensor]:
        """(gradient in (w, s) before the step, gradient q in the consumed gradient).

        The gradient in w is the optimizer's own part; the training loss's curvature comes on top.
        """

    @abstractmethod
    def push(self, move: Move[Any, Any], before: Along, dg: Tensor) -> Along:
        """The change of (w', s') that a change of (w, s) and one of the gradient make."""

    @abstractmethod
    def moved(self, move: Move[Any, Any], gradient: Tensor) -> Along:
        """(w' - w, s') with another gradient in place of the move's, not linearized.

        Not w' itself: differences of two such would drown in w's rounding.
        """

    @abstractmethod
    def shifted(self, move: Move[Any, Any], moments: tuple[Tensor, ...]) -> Move[Any, Any]:
        """The same move from moments that differ by so much."""

    def carried(self, move: Move[Any, Any], change: tuple[Tensor, ...]) -> Along:
        """The change of (w', s') that a change of the moments makes, not linearized."""
        new = self.moved(self.shifted(move, change), move.gradient)
        old = self.moved(move, move.gradient)
        moments = tuple(a - b for a, b in zip(new.moments, old.moments, strict=True))
        return Along(new.weight - old.weight, moments)


class AdamDerivative(StepDerivative):
    """Adam and AdamW, with amsgrad, maximize and either kind of decay."""

    def moments(self, move: Move[AdamState, AdamSetting]) -> int:
        """M, v, and with amsgrad the largest v."""
        return 2 if move.state.v_max is None else 3

    def _parts(self, move: Move[AdamState, AdamSetting]) -> tuple[Tensor, ...]:
        """(x, 1/A times lr/c1, slope of d in V, where V counts against its maximum)."""
        g, w, s, h = move.gradient, move.weight, move.state, move.setting
        x = -g if h.maximize else g
        if h.coupled and h.decay:
            x = x + h.decay * w
        first, second = h.b1 * s.m + (1 - h.b1) * x, h.b2 * s.v + (1 - h.b2) * x * x
        free = torch.ones((), dtype=torch.bool, device=w.device)
        if s.v_max is not None:
            free = second > s.v_max
            second = torch.where(free, second, s.v_max)
        c2, rate = 1 - h.b2 ** (s.steps + 1), h.lr / (1 - h.b1 ** (s.steps + 1))
        r = (second / c2).sqrt()
        inverse = rate / (r + h.eps)
        bend = -inverse * first / (2 * c2 * r * (r + h.eps))
        return (
            x,
            torch.where(r == 0, torch.zeros_like(r), inverse),
            torch.where(r == 0, torch.zeros_like(r), bend),
            free,
        )

    def pull(self, move: Move[AdamState, AdamSetting], after: Along) -> tuple[Along, Tensor]:
        """See `StepDerivative.pull`."""
        h = move.setting
        x, inverse, bend, free = self._parts(move)
        a_first = after.moments[0] - after.weight * inverse
        a_second = after.moments[1] - after.weight * bend
        rest: tuple[Tensor, ...] = ()
        if move.state.v_max is not None:  # the maximum takes the place of V where it is larger
            a_largest = after.moments[2] - after.weight * bend
            a_second = after.moments[1] + a_largest * free
            rest = (a_largest * ~free,)
        a_x = (1 - h.b1) * a_first + 2 * (1 - h.b2) * x * a_second
        a_weight = after.weight
        if h.decay:
            a_weight = a_weight + h.decay * a_x if h.coupled else (1 - h.lr * h.decay) * a_weight
        before = Along(a_weight, (h.b1 * a_first, h.b2 * a_second, *rest))
        return before, -a_x if h.maximize else a_x

    def push(self, move: Move[AdamState, AdamSetting], before: Along, dg: Tensor) -> Along:
        """See `StepDerivative.push`."""
        h = move.setting
        x, inverse, bend, free = self._parts(move)
        dx = -dg if h.maximize else dg
        if h.coupled and h.decay:
            dx = dx + h.decay * before.weight
        d_first = h.b1 * before.moments[0] + (1 - h.b1) * dx
        d_second = h.b2 * before.moments[1] + 2 * (1 - h.b2) * x * dx
        counted = d_second
        moments: tuple[Tensor, ...] = (d_first, d_second)
        if move.state.v_max is not None:
            counted = torch.where(free, d_second, before.moments[2])
            moments = (d_first, d_second, counted)
        kept = 1.0 if h.coupled else 1 - h.lr * h.decay
        return Along(kept * before.weight - inverse * d_first - bend * counted, moments)

    def moved(self, move: Move[AdamState, AdamSetting], gradient: Tensor) -> Along:
        """See `StepDerivative.moved`."""
        rule, w, h = move.rule, move.weight, move.setting
        state = rule.advance(gradient, w, move.state, h)
        moments = tuple(part for part in state[:3] if isinstance(part, Tensor))
        c2, rate = 1 - h.b2**state.steps, h.lr / (1 - h.b1**state.steps)
        root = (moments[-1] * (1 / c2)).sqrt_().add_(h.eps)
        change = (state.m / root).mul_(-rate)
        if not h.eps:  # nothing has touched these elements
            change = torch.where(root == 0, 0.0, change)
        if h.decay and not h.coupled:
            change = change.sub_(w, alpha=h.lr * h.decay)
        return Along(change, moments)

    def shifted(
        self, move: Move[AdamState, AdamSetting], moments: tuple[Tensor, ...]
    ) -> Move[AdamState, AdamSetting]:
        """See `StepDerivative.shifted`. Second moments stay above 0, where rounding would not."""
        s, (dm, dv, *rest) = move.state, moments
        largest = None if s.v_max is None else (s.v_max + rest[0]).clamp(min=0)
        state = AdamState(s.m + dm, (s.v + dv).clamp(min=0), largest, s.steps)
        return Move(move.rule, move.weight, move.gradient, state, move.setting)


class SGDDerivative(StepDerivative):
    """SGD; it is affine, so the maps are the rule itself."""

    def moments(self, move: Move[SGDState, SGDSetting]) -> int:
        """The momentum buffer, if there is momentum."""
        return int(move.setting.momentum != 0)

    @staticmethod
    def _shares(move: Move[SGDState, SGDSetting]) -> tuple[float, float]:
        """(what of x enters the buffer, what of the buffer stays)."""
        h = move.setting
        return (1.0, 0.0) if move.state.buffer is None else (1.0 - h.dampening, h.momentum)

    def pull(self, move: Move[SGDState, SGDSetting], after: Along) -> tuple[Along, Tensor]:
        """See `StepDerivative.pull`."""
        h = move.setting
        a_moved = -h.lr * after.weight
        moments: tuple[Tensor, ...] = ()
        if h.momentum == 0:
            a_x = a_moved
        else:
            entering, staying = self._shares(move)
            a_buffer = after.moments[0] + (h.momentum if h.nesterov else 1.0) * a_moved
            a_x = entering * a_buffer + (a_moved if h.nesterov else 0.0)
            moments = (staying * a_buffer,)
        return Along(after.weight + h.decay * a_x, moments), -a_x if h.maximize else a_x

    def push(self, move: Move[SGDState, SGDSetting], before: Along, dg: Tensor) -> Along:
        """See `StepDerivative.push`."""
        h = move.setting
        dx = (-dg if h.maximize else dg) + h.decay * before.weight
        if h.momentum == 0:
            return Along(before.weight - h.lr * dx, ())
        entering, staying = self._shares(move)
        buffer = staying * before.moments[0] + entering * dx
        moved = dx + h.momentum * buffer if h.nesterov else buffer
        return Along(before.weight - h.lr * moved, (buffer,))

    def moved(self, move: Move[SGDState, SGDSetting], gradient: Tensor) -> Along:
        """See `StepDerivative.moved`."""
        rule, w, s, h = move.rule, move.weight, move.state, move.setting
        buffer = rule.advance(gradient, w, s, h).buffer
        moved = -rule.displacement(gradient, w, s, h)
        return Along(moved, () if h.momentum == 0 or buffer is None else (buffer,))

    def shifted(
        self, move: Move[SGDState, SGDSetting], moments: tuple[Tensor, ...]
    ) -> Move[SGDState, SGDSetting]:
        """See `StepDerivative.shifted`."""
        buffer = move.state.buffer
        state = SGDState(buffer if buffer is None or not moments else buffer + moments[0])
        return Move(move.rule, move.weight, move.gradient, state, move.setting)


def joined(moves: list[Move[Any, Any]]) -> Move[Any, Any]:
    """Moves of one setting and one age as one move of flat tensors: fewer, larger operations.

    The rule must be elementwise.
    """
    first = moves[0]
    state = [
        flat([m.state[i] for m in moves]) if isinstance(part, Tensor) and part.ndim else part
        for i, part in enumerate(first.state)
    ]
    weight, gradient = flat([m.weight for m in moves]), flat([m.gradient for m in moves])
    return Move(first.rule, weight, gradient, type(first.state)(*state), first.setting)
