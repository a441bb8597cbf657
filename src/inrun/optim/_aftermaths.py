"""Which aftermath belongs to a move: the one that its rule can be known by."""

from __future__ import annotations

from typing import Any

from inrun.optim._adam import AdamRule
from inrun.optim._adam_aftermath import AdamAftermath
from inrun.optim._aftermath import Aftermath, FirstOrder, Stepped
from inrun.optim._rule import Move
from inrun.optim._sgd import SGDRule


def aftermath_of(move: Move[Any, Any], steps: int) -> Aftermath:
    """An aftermath to which nothing has been added yet.

    Args:
        move: one of those that will be added.
        steps: for how many steps at most the real rule is played where no formula is known for all
            of them; 0 asks for first order.
    """
    if steps == 0 or type(move.rule) is SGDRule:  # SGD is affine
        return FirstOrder()
    if type(move.rule) is AdamRule and move.state.v_max is None:
        return AdamAftermath(steps)
    return Stepped(steps)
