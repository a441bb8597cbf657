"""One pass backward over a trajectory: every row's effect on later losses, in its own step.

a = dV/d(w, moments) is carried backward. At a state where the loss counts, its gradient is added;
through a step, the optimizer's derivative pulls it back, and the training loss's curvature comes on
top (design in `_gradient.py`, maps in `inrun.optim`):

    q, a  <- pull(a)            q = dV/d(consumed gradient)
    p     <- clipping pulls q   p = dV/d(raw gradient)
    value <- change of V when the row is taken out: +: the loss would be higher without it
    a_w   <- a_w + H p

In memory: parameters, moments, gradient, direction, Hessian-vector product and a, whatever the
number of rows. Letters: B rows of a block, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.optim import Along, Move
from inrun.replay._agreement import check_norm
from inrun.replay._carried import Carried, Names, alike
from inrun.replay._dynamics import Dynamics
from inrun.replay._folder import Step
from inrun.replay._gradient import StepGradient
from inrun.replay._horizon import Horizon
from inrun.replay._push import Moment, Push
from inrun.replay._removal import Removal
from inrun.replay._replica import Replica
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, evaluate


class Method(NamedTuple):
    """What kind of sweep: each part an object of its own."""

    horizon: Horizon
    dynamics: Dynamics
    push: Push
    removal: Removal
    curvature: bool
    kink_width: float


class StepValues(NamedTuple):
    """A step's values, (B, K) float64 a block; `ends_at` the state that they look ahead to."""

    step: Step
    values: list[Tensor]
    ends_at: int


Watch = Callable[[Step, StepGradient, dict[str, Tensor]], None]
"""Called at each step with its gradient and p, the loss's derivative in it: (K, *shape) each."""


def sweep(
    run: Trajectory, utility: Utility, method: Method, copies: int, watch: Watch | None = None
) -> Iterator[StepValues]:
    """Values of every step, from the last to the first."""
    replica, K = run.replica, len(utility.targets)
    carried, end = Carried(replica.parameters, K), len(run.steps)
    for state in run.backward(copies):
        if state < len(run.steps):
            step = run.steps[state]
            replica.set_groups(step)
            yield StepValues(step, _through(run, step, carried, method, end, watch), end)
        if method.horizon.begins_anew(state):
            carried, end = Carried(replica.parameters, K), state
        weight = method.horizon.weight(state)
        if weight and state:
            gradients = evaluate(utility, replica.model, replica.parameters).gradients
            with torch.no_grad():
                carried.add_to_weights({name: weight * g for name, g in gradients.items()})


def _through(
    run: Trajectory,
    step: Step,
    carried: Carried,
    method: Method,
    end: int,
    watch: Watch | None,
) -> list[Tensor]:
    """Takes what is carried through one step; returns the rows' values."""
    replica = run.replica
    passage = taken_back(replica, step, carried, method.dynamics, method.kink_width)
    if watch is not None:
        watch(step, passage.gradient, passage.directions)
    curved, contractions = passage.gradient.contract(passage.directions, curvature=method.curvature)
    with torch.no_grad():
        carried.add_to_weights(curved)
    moment = Moment(
        step,
        passage.gradient,
        passage.moves,
        passage.after,
        contractions,
        replica.parameters,
        replica.task.clip_norm,
        end,
    )
    return method.push.values(moment, method.removal)


class Passage(NamedTuple):
    """A step that a loss's gradient was taken back through, but for the training loss's curvature.

    `after` is what was carried before that, `directions` p, (K, *shape) a parameter.
    """

    gradient: StepGradient
    moves: dict[Names, Move[Any, Any]]
    after: dict[Names, Along]
    directions: dict[str, Tensor]


def taken_back(
    replica: Replica, step: Step, carried: Carried, dynamics: Dynamics, kink_width: float = 0.0
) -> Passage:
    """Takes what is carried back through the step that the replica is about to take."""
    gradient = StepGradient(replica, step, kink_width)
    check_norm(replica, step, gradient.norm)
    moves = alike([(n, dynamics.read(move)) for n, move in gradient.moves()])
    after, directions = carried.pull(moves)
    with torch.no_grad():
        directions = gradient.consumed_to_raw(directions)
    return Passage(gradient, moves, after, directions)
