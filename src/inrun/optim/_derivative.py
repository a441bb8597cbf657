"""The derivative of one optimizer step, (w, s, g) -> (w', s'), in both directions.

A trajectory is a chain of steps. To see a sample's effect many steps later, a perturbation is
pushed forward through the chain, or the later loss's gradient is pulled back through it. Both are
linear maps, each the other's transpose. Adam and SGD have theirs written out beside their rules;
every other smooth rule's come from its own formulas by automatic differentiation. Where autograd
finds 0 * inf, nothing has touched an element yet, and the slope counts 0, as in `Rule`. A moment
that is not of the weight's shape (Adafactor's rows and columns) is carried flat, filled up with
zeros to the weight's size.

A removed sample leaves changed moments behind, which act in later steps. `PostStepTerms` gathers
these steps from the last one backward, and says at any point what a change of the moments is worth.
Letters: R changes (rows), K targets, n elements.

The gradient in the consumed gradient, q, is the direction of look-ahead. Tensors may have leading
axes (K targets, or samples) before the move's own shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._move import Move
from inrun.optim._rule import Rule

Step = Callable[..., tuple[Tensor, ...]]


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

    def damped(self, move: Move[Any, Any], square: Tensor) -> Move[Any, Any]:
        """The move whose derivative stands for this one's on a way as wide as the root of `square`.

        A rule that divides by what it has seen of an element steps by its sign where that is next
        to nothing, and the slope of a sign says nothing of a change that turns it. Rules without a
        formula for it give the move itself.

        Args:
            move: of elementwise parameters.
            square: of the size of a likely change of the gradient, like `move.gradient`.
        """
        return move

    def following(self, move: Move[Any, Any], steps: int) -> PostStepTerms:
        """Terms of moves such as this; where no formula is known for all, `steps` are played."""
        return Stepped(steps)


class AutomaticDerivative(StepDerivative):
    """Any rule whose displacement and state are differentiable in weight, gradient and state."""

    def moments(self, move: Move[Any, Any]) -> int:
        """The state's tensors but for single numbers, which no sample moves."""
        return len(_places(move))

    def pull(self, move: Move[Any, Any], after: Along) -> tuple[Along, Tensor]:
        """See `StepDerivative.pull`: one backward pass per row."""
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
        """See `StepDerivative.push`: one forward-mode pass per row."""
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
        _require_elementwise(move)
        rule, w, s, h = move.rule, move.weight, move.state, move.setting
        after = rule.advance(gradient, w, s, h)
        moments = tuple(after[place] for place in _places(move))
        return Along(-move.defined_displacement(gradient), moments)

    def shifted(self, move: Move[Any, Any], moments: tuple[Tensor, ...]) -> Move[Any, Any]:
        """See `StepDerivative.shifted`. Moments that are nowhere negative stay so."""
        _require_elementwise(move)
        state = list(move.state)
        for place, change in zip(_places(move), moments, strict=True):
            never_negative = bool((state[place] >= 0).all())
            state[place] = state[place] + change
            if never_negative:
                state[place] = state[place].clamp(min=0)
        return Move(move.rule, move.weight, move.gradient, type(move.state)(*state), move.setting)


def _require_elementwise(move: Move[Any, Any]) -> None:
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


_AUTOMATIC = AutomaticDerivative()


def derivative_of(rule: Rule[Any, Any]) -> StepDerivative:
    """The derivative that belongs to a rule: written out, or by automatic differentiation."""
    why = None
    if rule.jumps:
        why = "steps by signs, whose derivative is 0 almost everywhere and says nothing"
    elif rule.rounds:
        why = "rounds its state after each step, to what is not known beforehand"
    elif not rule.advances:
        why = "is known by its displacement alone, not by what its state becomes"
    if why is not None:
        raise NotSupportedError(
            f"{type(rule).__name__} {why}, so nothing can be carried through its steps. Measure by "
            "training again (inrun.truth.retrain), or train with a smooth rule."
        )
    return rule.derivative or _AUTOMATIC


def post_step_terms_of(move: Move[Any, Any], steps: int) -> PostStepTerms:
    """Terms to which nothing has been added yet; with 0 steps to first order."""
    return derivative_of(move.rule).following(move, steps) if steps else FirstOrder()


class PostStepTerms(ABC):
    """The steps that follow, of parameters that move alike."""

    @abstractmethod
    def loss_change(self, new: Along, old: Along, after: Along) -> Tensor:
        """The change of the loss that other moments make, (R, K) float64.

        Args:
            new: what the step before those that follow would have left, moments (R, n).
            old: what it did leave, moments (n,).
            after: the loss's gradient in the state that it left, (K, n).
        """

    @abstractmethod
    def advance(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        """That step now belongs to those that follow; arguments as for `loss_change`."""


class FirstOrder(PostStepTerms):
    """To first order at once: exact where the rule is affine."""

    def loss_change(self, new: Along, old: Along, after: Along) -> Tensor:
        total = new.weight.new_zeros((), dtype=torch.float64)
        for changed, kept, gradient in zip(new.moments, old.moments, after.moments, strict=True):
            total = total + paired(changed - kept, gradient)
        return total.expand(len(new.weight), len(after.weight))

    def advance(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        """See `PostStepTerms.advance`: nothing is kept."""


class Stepped(PostStepTerms):
    """Step by step through the rule's own formulas, for so many steps; the rest to first order."""

    def __init__(self, steps: int):
        self._later: deque[tuple[Move[Any, Any], Along]] = deque(maxlen=steps)

    def loss_change(self, new: Along, old: Along, after: Along) -> Tensor:
        total = new.weight.new_zeros((), dtype=torch.float64)
        change = tuple(a - b for a, b in zip(new.moments, old.moments, strict=True))
        for move, then in self._later:
            moved, change = derivative_of(move.rule).carried(move, change)
            total, after = total + paired(moved, then.weight), then
        for part, gradient in zip(change, after.moments, strict=True):
            total = total + paired(part, gradient)
        return total.expand(len(new.weight), len(after.weight))

    def advance(self, move: Move[Any, Any], old: Along, after: Along) -> None:
        self._later.appendleft((move, after))


def paired(change: Tensor, gradient: Tensor) -> Tensor:
    """(R, n) and (K, n) to (R, K), added up in double precision."""
    return change.double() @ gradient.double().T
