"""Which dynamics the sweep runs through: the optimizer's own, or, to compare with, plain SGD's.

The published trajectory methods assume that a step is w' = w - lr g. The second class answers what
that assumption costs, everything else being equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from inrun.errors import MisuseError
from inrun.optim import Move, SGDRule, SGDSetting, SGDState

_PLAIN = SGDRule()


class Dynamics(ABC):
    """Which rule a recorded move is taken to have followed. Stateless."""

    name: ClassVar[str]

    @abstractmethod
    def read(self, move: Move[Any, Any]) -> Move[Any, Any]:
        """The move that the sweep goes through."""


class Own(Dynamics):
    """The optimizer that really moved."""

    name = "optimizer"

    def read(self, move: Move[Any, Any]) -> Move[Any, Any]:
        """See `Dynamics.read`."""
        return move


class AsSGD(Dynamics):
    """Plain SGD at the same learning rate and decay."""

    name = "sgd"

    def read(self, move: Move[Any, Any]) -> Move[Any, Any]:
        """See `Dynamics.read`."""
        h = move.setting
        setting = SGDSetting(h.lr, 0.0, 0.0, h.decay, nesterov=False, maximize=h.maximize)
        return Move(_PLAIN, move.weight, move.gradient, SGDState(None), setting)


_KINDS: dict[str, Dynamics] = {kind.name: kind for kind in (Own(), AsSGD())}


def dynamics_named(name: str) -> Dynamics:
    """The dynamics of that name.

    Raises:
        MisuseError: there are none.
    """
    if name not in _KINDS:
        raise MisuseError(f"dynamics {name!r} is not one of {', '.join(_KINDS)}.")
    return _KINDS[name]
