"""A step's derivative from the rule's own formulas, by automatic differentiation.

For every smooth rule that has no derivative written out. Where autograd finds 0 * inf, nothing has
touched an element yet, and the slope counts 0, as in `Rule`. A moment that is not of the weight's
shape (Adafactor's rows and columns) is carried flat, filled up with zeros to the weight's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._adam import AdamRule
from inrun.optim._derivative import AdamDerivative, Along, SGDDerivative, StepDerivative
from inrun.optim._rule import Move, Rule
from inrun.optim._sgd import SGDRule
from inrun.optim._written import WrittenElementwise, WrittenMatrix

Step = Callable[..., tuple[Tensor, ...]]


class AutomaticDerivative(StepDerivative):
    """Any rule whose displacement and state are differentiable in weight, gradient and state."""

    def moments(self, move: Move[Any, Any]) -> int:
        """The state's tensors but for single numbers, which no sample moves."""
        return len(_places(move))

    def pull(self, move: Move[Any, Any], after: Along) -> tuple[Along, Tensor]:
        """See `StepDerivative.pull`: one backward pass a row."""
        inputs = [t.detach().clone().requires_grad_() for t in _inputs(move)]
        with torch.enable_grad():
            outputs = _step(move)(*inputs)
        rows = []
        for parts in _rows(after, move):
            found = torch.autograd.grad(
                outputs, inputs, [p.reshape(o.shape) for p, o in zip(parts, outputs, strict=True)],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            rows.append([_padded(_finite(part), move) for part in found])
        w, g, *rest = (torch.stack(parts) for parts in zip(*rows, strict=True))
        like = after.weight.shape
        return Along(w.reshape(like), tuple(m.reshape(like) for m in rest)), g.reshape(like)

    def push(self, move: Move[Any, Any], before: Along, dg: Tensor) -> Along:
        """See `StepDerivative.push`: one forward-mode pass a row."""
        inputs = tuple(_inputs(move))
        gradients = dg.expand(before.weight.shape).reshape(-1, move.weight.numel())
        rows = []
        for parts, one in zip(_rows(before, move), gradients, strict=True):
            changed = [parts[0], one, *parts[1:]]
            along = [t.reshape(x.shape) for t, x in zip(changed, inputs, strict=True)]
            changes = torch.func.jvp(_step(move), inputs, tuple(along))[1]
            rows.append([_padded(_finite(part), move) for part in changes])
        w, *moments = (torch.stack(parts) for parts in zip(*rows, strict=True))
        like = before.weight.shape
        return Along(w.reshape(like), tuple(m.reshape(like) for m in moments))

    def moved(self, move: Move[Any, Any], gradient: Tensor) -> Along:
        """See `StepDerivative.moved`.

        Raises:
            NotSupportedError: the rule mixes a parameter's elements.
        """
        _demand_elementwise(move)
        rule, w, s, h = move.rule, move.weight, move.state, move.setting
        after = rule.advance(gradient, w, s, h)
        moments = tuple(after[place] for place in _places(move))
        return Along(-move.defined_displacement(gradient), moments)

    def shifted(self, move: Move[Any, Any], moments: tuple[Tensor, ...]) -> Move[Any, Any]:
        """See `StepDerivative.shifted`. Moments that are nowhere negative stay so."""
        _demand_elementwise(move)
        state = list(move.state)
        for place, change in zip(_places(move), moments, strict=True):
            never_negative = bool((state[place] >= 0).all())
            state[place] = state[place] + change
            if never_negative:
                state[place] = state[place].clamp(min=0)
        return Move(move.rule, move.weight, move.gradient, type(move.state)(*state), move.setting)


def _demand_elementwise(move: Move[Any, Any]) -> None:
    if not move.rule.elementwise:
        raise NotSupportedError(
            f"{type(move.rule).__name__} mixes a parameter's elements, and the finite push takes "
            "rules element by element. Use push='tangent'."
        )


def _places(move: Move[Any, Any]) -> list[int]:
    return [i for i, t in enumerate(move.state) if isinstance(t, Tensor) and t.ndim > 0]


def _inputs(move: Move[Any, Any]) -> list[Tensor]:
    return [move.weight, move.gradient, *(move.state[place] for place in _places(move))]


def _step(move: Move[Any, Any]) -> Step:
    """(w, g, *moments) -> (w', *moments')."""
    places = _places(move)

    def step(w: Tensor, g: Tensor, *moments: Tensor) -> tuple[Tensor, ...]:
        parts = list(move.state)
        for place, moment in zip(places, moments, strict=True):
            parts[place] = moment
        state = type(move.state)(*parts)
        after = move.rule.advance(g, w, state, move.setting)
        moved = move.rule.smooth_displacement(g, w, state, move.setting)
        return (w - moved, *(after[place] for place in places))

    return step


def _rows(along: Along, move: Move[Any, Any]) -> list[list[Tensor]]:
    """For each row of the leading axes its parts, cut to their own sizes."""
    n = move.weight.numel()
    sizes = [n, *(move.state[place].numel() for place in _places(move))]
    flat = [part.reshape(-1, n) for part in (along.weight, *along.moments)]
    return [
        [part[row, :size] for part, size in zip(flat, sizes, strict=True)]
        for row in range(len(flat[0]))
    ]


def _padded(part: Tensor, move: Move[Any, Any]) -> Tensor:
    flat = part.reshape(-1)
    return torch.cat([flat, flat.new_zeros(move.weight.numel() - flat.numel())])


def _finite(part: Tensor) -> Tensor:
    return part.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


_WRITTEN_OUT: dict[type[Rule[Any, Any]], StepDerivative] = {
    AdamRule: AdamDerivative(),
    SGDRule: SGDDerivative(),
}
_AUTOMATIC = AutomaticDerivative()


def derivative_of(rule: Rule[Any, Any]) -> StepDerivative:
    """The derivative that belongs to a rule: written out, or by automatic differentiation.

    Raises:
        NotSupportedError: the rule jumps, or its state's next value is not known.
    """
    if type(rule) in _WRITTEN_OUT:
        return _WRITTEN_OUT[type(rule)]
    if rule.jumps or rule.rounds or isinstance(rule, (WrittenElementwise, WrittenMatrix)):
        why = (
            "steps by signs, whose derivative is 0 almost everywhere and says nothing"
            if rule.jumps
            else "rounds its state after each step, to what is not known beforehand"
            if rule.rounds
            else "is known by its displacement alone, not by what its state becomes"
        )
        raise NotSupportedError(
            f"{type(rule).__name__} {why}, so nothing can be carried through its steps. Measure by "
            "training again (inrun.truth.retrain), or train with a smooth rule."
        )
    return _AUTOMATIC
