"""The path integral of the real update through the real loss, from w_t to w_t+1.

The Aumann-Shapley value of the step, with momentum and decay as one more player (shared history):
direction J^T gbar, J the rule's mean Jacobian on the way from no gradient to g (elementwise
D = (u(g) - u(0)) / g), gbar = (gV(w_t) + gV(w_t+1)) / 2. Nothing of the optimizer is expanded, and
what the samples, momentum and decay are given adds up to what the loss did, but for the error of
the trapezoid: that is the books' residual.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from inrun.directions._direction import Direction, Game, Gradients, Pulled, closing_or_opening
from inrun.optim import Move, Slope, each_piece


class Path(Direction):
    """value_b = <J^T gbar, share_b>."""

    name = "path"
    game: ClassVar[Game] = "shared"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """J, elementwise lr * D."""
        return move.slope()

    def gradient(self, at: Gradients, move: Move[Any, Any]) -> Tensor:
        """Mean of the opening and the closing gradient."""
        return at.opening if at.closing is None else torch.lerp(at.opening, at.closing, 0.5)

    def settles(self, move: Move[Any, Any]) -> bool:
        """See `Direction.settles`; never for a subclass, which may mean another gradient."""
        rule, kind = move.rule, move.gradient.dtype
        precise = kind == move.weight.dtype and kind in (torch.float32, torch.float64)
        doubles = move.weight.device.type != "mps"  # the books' sums are in double precision
        plain = type(self) is Path and type(move.gradient) is Tensor and rule.elementwise
        return plain and precise and doubles and rule.settles(move.state, move.setting)

    def settled(self, after: Move[Any, Any], at: Gradients, scale: float, *, held: bool) -> Pulled:
        """See `Direction.settled`: one pass over all arrays, of which the direction alone stays."""
        opening, closing = at.opening, closing_or_opening(at)
        directions = torch.empty_like(opening) if held else opening[:0]
        at_once = after.rule.settled_at_once(
            after, opening, closing, directions if held else None, scale
        )
        if at_once is not None:
            return Pulled(directions if held else None, *at_once)
        momentum, decay = opening.new_zeros(2, len(opening), dtype=torch.float64)
        arrays = (after.weight, after.gradient,
                  (after.state, tuple(opening), tuple(closing), tuple(directions)))  # fmt: skip
        settled, half = after.rule.settled, scale / 2 if held else None
        for weight, gradient, (state, openings, closings, rows) in each_piece(arrays):
            told = settled(gradient, weight, state, after.setting, half)
            for k, (first, last) in enumerate(zip(openings, closings, strict=True)):
                twice = first + last
                if told.momentum is not None:
                    momentum[k] += _dot(twice, told.momentum) * (told.rate / 2)
                if told.decayed is not None:
                    decay[k] += _dot(twice, told.decayed) * (told.share / 2)
                if told.slope is not None:
                    torch.mul(twice, told.slope, out=rows[k])
        return Pulled(directions if held else None, momentum, decay)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
