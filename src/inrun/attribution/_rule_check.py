"""Whether an update rule that nobody tested here is what the optimizer really does.

Rules of `torch.optim` are tested against it. Those of other packages are recognised by name, and
those that were registered were written by the user: for them the first scored step, and then the
2nd, 4th, 8th and so on, are compared with what the rule says, before they are booked.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.attribution._plan import ParameterPlan
from inrun.distributed import own_part
from inrun.errors import InvariantError
from inrun.optim import Together, tested

RELATIVE = 1e-3


class RuleCheck:
    """Predicts weights before a step and compares them after it."""

    def __init__(self) -> None:
        self.steps = 0
        self._expected: dict[str, tuple[str, Tensor, float]] = {}

    def before(self, optimizers: Together, plans: Mapping[str, ParameterPlan]) -> None:
        """Takes note of where the rules say that the weights will be, if this step is checked."""
        self._expected = {}
        self.steps += 1
        if self.steps & (self.steps - 1):  # not a power of two
            return
        for name, plan in plans.items():
            optimizer = optimizers.members[plan.optimizer]
            if not tested(optimizer):
                kind = type(optimizer).__name__
                moved = plan.move.displacement(plan.move.gradient)
                self._expected[name] = kind, plan.move.weight - moved, _size(moved)

    def after(self, plans: Mapping[str, ParameterPlan]) -> None:
        """Compares.

        Raises:
            InvariantError: the optimizer did something else; the message says by how much.
        """
        for name, (kind, expected, moved) in self._expected.items():
            if name not in plans:
                continue  # its optimizer did not step
            found = own_part(plans[name].parameter.detach())
            wrong = _size(found - expected)
            rounding = 4 * torch.finfo(found.dtype).eps * _size(found)
            if not wrong <= RELATIVE * moved + rounding:
                raise InvariantError(
                    f"The update rule for {kind} is not what the optimizer did to "
                    f"{name}: they are {wrong / max(moved, 1e-30):.2g} of the step apart, summed "
                    "over elements. Nothing was scored. Where the rule is your own, compare it "
                    "with the optimizer's step() and its options; where it is not, this version or "
                    "option of the optimizer is not known here: write its rule, "
                    "inrun.optim.register."
                )


def _size(t: Tensor) -> float:
    return float(t.abs().sum(dtype=torch.float64))
