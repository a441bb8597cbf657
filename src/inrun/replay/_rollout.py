"""A few steps ahead of a live training, on a copy, and the loss's gradient carried back from there.

The copy takes the coming step with a given gradient and then steps on anticipated batches. What the
validation loss at the end says of the states on the way is its adjoint, taken back through each of
these steps as in `_sweep.py`:

    x_1 = step(x_0, g),   x_j+1 = step(x_j, batch_j)
    a_H = dV/dx_H,        a_j = (dx_j+1/dx_j)^T a_j+1

In memory: the copy, and a state each step (parameters and moments). Cost: for every anticipated
step one forward and backward pass, and one more forward with a double backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inrun.replay import _snapshot
from inrun.replay._agreement import check_first_step
from inrun.replay._carried import Carried
from inrun.replay._dynamics import Own
from inrun.replay._folder import Block, Ids, Memory, Step
from inrun.replay._prospect import summed_gradients
from inrun.replay._replica import (
    Replica,
    Task,
    gradient_norm,
    modules_at_rest,
    settings_of,
    states_for_blocks,
)
from inrun.replay._sweep import taken_back
from inrun.utility import Utility


class Rollout:
    """Looks ahead of a live training; the training itself is left alone.

    Args:
        model: that is trained.
        optimizer: of a smooth rule.
        task: what an anticipated step computes: `losses` and `fetch` as for `inrun.record`.
        utility: the validation loss.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, utility: Utility
    ):
        self._model, self._optimizer, self._utility = model, optimizer, utility
        self._live = _snapshot.names_of(model, optimizer)
        self._keeper = Memory()
        self._replica = Replica(model, optimizer, task, self._keeper)

    def check(self, ids: Ids, random: Mapping[str, Tensor] | None) -> None:
        """Holds `losses` and `fetch` against the loop's own gradient, which is in `.grad`.

        Args:
            ids: of the block that made it.
            random: random state before the block, where it drew numbers.

        Raises:
            MisuseError: the terms do not add up to the training loss, or belong to other rows.
            InvariantError: the same pass does not give the same gradient twice.
        """
        if random is not None:
            self._keeper.keep_random(1, states_for_blocks([random]))
        step = self._step(1, ids, random=random is not None)
        self._begin()
        snapshot = _snapshot.take(self._live, self._model, self._optimizer)
        norm = gradient_norm(self._live)
        check_first_step(self._replica, replace(step, norm=norm), snapshot, self._live)

    def ahead(
        self, gradient: Mapping[str, Tensor], batches: Sequence[Ids], wanted: int
    ) -> list[Carried]:
        """The loss's gradient in the states after the first steps, one target.

        The loss is that after `len(batches) + 1` steps.

        Args:
            gradient: what the coming step consumes, clipped already, by parameter.
            batches: ids of the steps after it.
            wanted: for how many states it is asked, at least one.
        """
        replica = self._replica
        self._begin()
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
            passage = taken_back(replica, steps[place], carried, Own())
            curved, _ = passage.gradient.contract(passage.directions)
            with torch.no_grad():
                carried.add_to_weights(curved)
            if place < wanted:
                found.append(carried.copy())
        return found[::-1]

    def _begin(self) -> None:
        self._replica.modes = [modules_at_rest(self._model)]

    def _step(self, number: int, ids: Ids, *, random: bool = False) -> Step:
        """A step of one block with the settings that the groups have now."""
        groups = tuple(settings_of(group) for group in self._optimizer.param_groups)
        return Step(number, (Block(ids, 0, random),), groups, 0.0, 1.0)
