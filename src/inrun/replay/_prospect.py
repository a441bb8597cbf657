"""The step that an optimizer is about to take with some gradient: where it lands, what it is worth.

With g the consumed gradient, x = (w, moments) the state that the step leads to and V a later loss,
the step is looked at from both ends: it can be tried out (the validation loss's gradient where it
lands), and a gradient of V in x can be taken back through it to p = dV/d(raw gradient). Nothing
moves for good.

While an optimizer is young (Adam's first steps are nearly signs of the gradient) or always acts
like a sign, its derivative at one gradient says little or explodes. The way back then goes through
the mean slope from no gradient to this one, as attribution's `path` does, and looks one step ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inrun.optim import Rule, moves
from inrun.replay._carried import Carried, alike
from inrun.replay._gradient import unclipped
from inrun.replay._replica import gradient_norm
from inrun.utility import Utility, displaced, evaluate

YOUNG = 10  # steps after an optimizer acted like a sign, as `smoothed_steps` of `inrun.attach`


class Prospect:
    """A live optimizer's coming step, were this the gradient.

    It leaves the clipped gradient in `.grad`; whoever looks ahead puts there what is to be
    consumed.

    Args:
        optimizer: that is about to step.
        rule: its rule.
        parameters: by name.
        raw: the gradient before clipping, by name; parameters without one do not move.
        clip_norm: as the loop passes it to `clip_grad_norm_`, or None.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: Rule[object, object],
        parameters: Mapping[str, Tensor],
        raw: Mapping[str, Tensor],
        clip_norm: float | None,
    ):
        self._parameters, self._raw = parameters, raw
        for name, p in parameters.items():
            p.grad = raw.get(name)
        self._norm = gradient_norm(parameters)
        self._clip = 1.0 if clip_norm is None else min(1.0, clip_norm / (self._norm + 1e-6))
        if self._clip < 1.0:
            for name, part in raw.items():
                parameters[name].grad = self._clip * part
        names = {id(p): name for name, p in parameters.items()}
        self._moves = [(names[id(p)], move) for p, move in moves(optimizer, rule)]

    def consumed(self) -> dict[str, Tensor]:
        """The gradient that the step takes in, by parameter."""
        return {name: move.gradient for name, move in self._moves}

    def landing(self, utility: Utility, model: nn.Module) -> dict[str, Tensor]:
        """The utility's gradient where the step lands, (1, *shape) a parameter."""
        with torch.no_grad():
            displacements = {
                self._parameters[name]: move.displacement(move.gradient)
                for name, move in self._moves
            }
        with displaced(displacements):
            return summed_gradients(utility, model, self._parameters)

    @property
    def young(self) -> bool:
        """Whether the step is too near to a sign of the gradient to be looked at through."""
        seen = [move.steps_taken() for _, move in self._moves]
        return min((steps for steps in seen if steps is not None), default=YOUNG) < YOUNG

    def taken_back(self, after: Carried) -> dict[str, Tensor]:
        """p, (1, *shape) a parameter.

        Args:
            after: the loss's gradient in the state after the step, in the weights alone where that
                is `young`; it is not changed.
        """
        with torch.no_grad():
            if self.young:
                weights = after.weights()
                q = {name: -move.slope().transposed(weights[name]) for name, move in self._moves}
            else:
                _, q = after.copy().pull(alike(self._moves))
            return unclipped(q, self._raw, self._norm, self._clip)


def summed_gradients(
    utility: Utility, model: nn.Module, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradient of the utility's weighted sum over targets, (1, *shape) a parameter."""
    found = evaluate(utility, model, parameters).gradients
    with torch.no_grad():
        weights = {name: g.new_tensor(utility.weights) for name, g in found.items()}
        return {n: torch.einsum("k,k...->...", weights[n], g)[None] for n, g in found.items()}
