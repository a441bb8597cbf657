"""Rules that users write: one pure function, the displacement, and nothing else.

    displacement(gradient, weight, state, group) -> w - w'

`state` is what the optimizer keeps for the parameter before the step (an empty mapping before the
first, if it fills it lazily), `group` its parameter group. The function writes to none of them.
Slope and tangent come from the function itself: by divided differences where it is elementwise, by
autograd where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from inrun.errors import NotSupportedError
from inrun.optim._divided import ElementwiseRule
from inrun.optim._jacobian import MatrixRule
from inrun.optim._rule import Rule

Displacement = Callable[[Tensor, Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor]


class WrittenState(NamedTuple):
    """The optimizer's own state of one parameter."""

    values: Mapping[str, Any]


class WrittenSetting(NamedTuple):
    """The parameter group, without its parameters; `lr`, `decay` and `maximize` out of it."""

    group: Mapping[str, Any]
    lr: float
    decay: float
    maximize: bool


class _Written(Rule[WrittenState, WrittenSetting]):
    """What both kinds have in common."""

    advances = False

    def __init__(self, function: Displacement, *, sign_like: bool):
        self._function, self.jumps, self.affine = function, sign_like, not sign_like

    def read(
        self, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> tuple[WrittenState, WrittenSetting]:
        """See `Rule.read`."""
        setting = WrittenSetting(
            group={key: value for key, value in group.items() if key != "params"},
            lr=float(group["lr"]),
            decay=float(group.get("weight_decay", 0.0)),
            maximize=bool(group.get("maximize", False)),
        )
        return WrittenState(dict(state)), setting

    def displacement(self, g: Tensor, w: Tensor, s: WrittenState, h: WrittenSetting) -> Tensor:
        """See `Rule.displacement`."""
        return self._function(g, w, s.values, h.group)

    def without_decay(self, h: WrittenSetting) -> WrittenSetting:
        """See `Rule.without_decay`: the group's `weight_decay` at 0, if it has one."""
        if not h.decay:
            return h
        return h._replace(decay=0.0, group={**h.group, "weight_decay": 0.0})

    def advance(self, g: Tensor, w: Tensor, s: WrittenState, h: WrittenSetting) -> WrittenState:
        """Not known: the function says what moves, not what is remembered."""
        raise NotSupportedError(
            "A registered update rule says what its optimizer displaces, not what becomes of the "
            "optimizer's state, so that steps cannot be chained. Train with torch.optim's."
        )


class WrittenElementwise(_Written, ElementwiseRule[WrittenState, WrittenSetting]):
    """A user's rule that treats each element alone."""


class WrittenMatrix(_Written, MatrixRule[WrittenState, WrittenSetting]):
    """A user's rule whose elements depend on each other."""


def written(function: Displacement, *, elementwise: bool, sign_like: bool) -> Rule[Any, Any]:
    """The rule of a user's function."""
    kind = WrittenElementwise if elementwise else WrittenMatrix
    return kind(function, sign_like=sign_like)
