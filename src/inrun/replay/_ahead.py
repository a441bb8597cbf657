"""Ahead of a live training: the step that is about to come, and a few anticipated ones after it.

With g the consumed gradient, x = (w, moments) the state that the step leads to and V a later loss,
the coming step is looked at from both ends: it can be tried out (the validation loss's gradient
where it lands), and a gradient of V in x can be taken back through it to p = dV/d(raw gradient).
Nothing moves for good.

While an optimizer is young (Adam's first steps are nearly signs of the gradient) or always acts
like a sign, its derivative at one gradient says little or explodes. The way back then goes through
the mean slope from no gradient to this one, as attribution's `path` does, and looks one step ahead.

Further ahead, a copy takes the coming step and then steps on anticipated batches; what the loss at
the end says of the states on the way is its adjoint, taken back as in `_sweep.py`:

    x_1 = step(x_0, g),   x_j+1 = step(x_j, batch_j)
    a_H = dV/dx_H,        a_j = (dx_j+1/dx_j)^T a_j+1

In memory: the copy, and a state per step (parameters and moments). Cost: for every anticipated
step one forward and backward pass, and one more forward with a double backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inrun.optim import Rule
from inrun.replay import _snapshot
from inrun.replay._agreement import check_first_step
from inrun.replay._carried import Carried, alike
from inrun.replay._folder import Block, Ids, Memory, Step
from inrun.replay._gradient import StepGradient, unclipped
from inrun.replay._replica import (
    Replica,
    Task,
    clipping,
    gradient_norm,
    length,
    moves_of,
    settings_of,
    states_for_blocks,
)
from inrun.replay._sweep import taken_back
from inrun.utility import Utility, displaced, evaluate

YOUNG = 10  # steps after an optimizer acted like a sign, as `smoothed_steps` of `inrun.attach`


class AnticipatedStep:
    """A live optimizer's coming step, were `raw` the gradient before clipping.

    It leaves the clipped gradient in `.grad`; whoever looks ahead puts there what is to be
    consumed. Parameters without a gradient do not move.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: Rule[object, object],
        parameters: Mapping[str, Tensor],
        raw: Mapping[str, Tensor],
        clip_norm: float | None,
    ):
        self._parameters, self._raw, self._norm = parameters, raw, length(raw.values())
        self._clip = clipping(self._norm, clip_norm)
        self._moves = moves_of(optimizer, rule, parameters, raw, self._clip)

    def consumed(self) -> dict[str, Tensor]:
        """The gradient that the step takes in, by parameter."""
        return {name: move.gradient for name, move in self._moves}

    def landing(self, utility: Utility, model: nn.Module) -> dict[str, Tensor]:
        """The utility's gradient where the step lands, (1, *shape) per parameter."""
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
        """p, (1, *shape) per parameter.

        `after` is the loss's gradient in the state after the step, in the weights alone where that
        is `young`; it is not changed.
        """
        with torch.no_grad():
            if self.young:
                weights = after.weights()
                q = {name: -move.slope().transposed(weights[name]) for name, move in self._moves}
            else:
                _, q = after.copy().pull(alike(self._moves))
            return unclipped(q, self._raw, self._norm, self._clip)

    def carried_back(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `taken_back`, of any gradients in the weights, (K, *shape) per parameter.

        Where every rule is elementwise the derivative is one number per element, read off once.
        """
        if all(move.rule.elementwise for _, move in self._moves):
            with torch.no_grad():
                slopes = self._consumed_slopes()
                q = {name: slopes[name] * gradients[name] for name in slopes}
                return unclipped(q, self._raw, self._norm, self._clip)
        carried = Carried(self._parameters, len(next(iter(gradients.values()))))
        carried.add_to_weights(gradients)
        return self.taken_back(carried)

    def _consumed_slopes(self) -> dict[str, Tensor]:
        ones = {name: torch.ones_like(move.gradient)[None] for name, move in self._moves}
        if self.young:
            return {name: -move.slope().transposed(ones[name]) for name, move in self._moves}
        carried = Carried(self._parameters, 1)
        carried.add_to_weights(ones)
        return carried.pull(alike(self._moves))[1]


def summed_gradients(
    utility: Utility, model: nn.Module, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradient of the utility's weighted sum over targets, (1, *shape) per parameter."""
    found = evaluate(utility, model, parameters).gradients
    with torch.no_grad():
        weights = {name: g.new_tensor(utility.weights) for name, g in found.items()}
        return {n: torch.einsum("k,k...->...", weights[n], g)[None] for n, g in found.items()}


class Rollout:
    """Looks ahead of a live training; the training itself is left alone."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, utility: Utility
    ):
        self._model, self._optimizer, self._utility = model, optimizer, utility
        self._live = _snapshot.names_of(model, optimizer)
        self._keeper = Memory()
        self._replica = Replica(model, optimizer, task, self._keeper)

    def check(self, ids: Ids, random: Mapping[str, Tensor] | None) -> None:
        """Holds `losses` and `fetch` against the loop's own gradient, which is in `.grad`.

        `random` is the random state before the block, where it drew numbers.
        """
        if random is not None:
            self._keeper.keep_random(1, states_for_blocks([random]))
        step = self._step(1, ids, random=random is not None)
        snapshot = _snapshot.take(self._live, self._model, self._optimizer)
        norm = gradient_norm(self._live)
        check_first_step(self._replica, replace(step, norm=norm), snapshot, self._live)

    def ahead(
        self, gradient: Mapping[str, Tensor], batches: Sequence[Ids], wanted: int
    ) -> list[Carried]:
        """The loss's gradient in the states after the first steps, one target.

        The loss is that after `len(batches) + 1` steps. `gradient` is what the coming step
        consumes, clipped already, `batches` are the ids of the steps after it, and it is
        asked for `wanted` states, at least one.
        """
        replica = self._replica
        replica.put(_snapshot.take(self._live, self._model, self._optimizer))
        replica.set_groups(self._step(1, []))
        for name, p in replica.parameters.items():
            p.grad = gradient[name].clone() if name in gradient else None
        replica.optimizer.step()
        states, steps = [], []
        for number, ids in enumerate(batches, start=2):
            states.append(replica.take())
            step = self._step(number, ids)
            steps.append(replace(step, norm=replica.play(step)))
        carried = Carried(replica.parameters, 1)
        carried.add_to_weights(summed_gradients(self._utility, replica.model, replica.parameters))
        found = [carried.copy()] if len(batches) < wanted else []
        for place in reversed(range(len(steps))):
            replica.put(states.pop(), lend=True)
            replica.set_groups(steps[place])
            gradient_there = StepGradient(replica, steps[place])
            passage = taken_back(replica, steps[place], carried, gradient_there)
            curved, _ = gradient_there.contract(passage.directions)
            with torch.no_grad():
                carried.add_to_weights(curved)
            if place < wanted:
                found.append(carried.copy())
        return found[::-1]

    def _step(self, number: int, ids: Ids, *, random: bool = False) -> Step:
        """A step of one block with the settings that the groups have now."""
        groups = tuple(settings_of(group) for group in self._optimizer.param_groups)
        block = Block(ids, self._replica.mode_of(self._model), random)
        return Step(number, (block,), groups, 0.0, 1.0)
