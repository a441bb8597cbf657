"""One pass backward over a trajectory: every row's effect on later losses, in its own step.

a = dV/d(w, moments) is carried backward. At a state where the loss counts, its gradient is added;
through a step, the optimizer's derivative pulls it back, and the training loss's curvature comes on
top (design in `_gradient.py`, maps in `inrun.optim`):

    q, a  <- pull(a)            q = dV/d(consumed gradient)
    p     <- clipping pulls q   p = dV/d(raw gradient)
    value <- change of V when the row is taken out: +: the loss would be higher without it
    a_w   <- a_w + H p

A row's loss term is a sum over its parts (a text's tokens), l_i = sum_t l_it, and so is its share;
contracted with the same p, the parts' values add up to the row's. In memory: parameters, moments,
gradient, direction, Hessian-vector product and a, whatever the number of rows. Letters: B rows of
a block, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.optim import Move, SGDRule, SGDSetting, SGDState
from inrun.replay._agreement import check_norm
from inrun.replay._carried import Carried, Spread, alike
from inrun.replay._folder import Step
from inrun.replay._gradient import StepGradient
from inrun.replay._removal import Passage, Push, Removal, push_named, removal_named
from inrun.replay._replica import Losses, Replica
from inrun.replay._trajectory import COPIES, Trajectory
from inrun.utility import Utility, evaluate

_PLAIN = SGDRule()
CHECKED_EVERY = 16  # steps, of which the parts are held against their rows


def windows(length: int | None, steps: int) -> frozenset[int]:
    """The states at which the loss counts: the run cut at multiples of `length` and at its end.

    Each step looks to its window's end; nothing that comes after it counts. A length of 1 is the
    step's own effect, None the effect on the run's last state.
    """
    if length is not None and length < 1:
        raise MisuseError(f"horizon is {length}; it counts steps, at least 1, None for all.")
    return frozenset({*range(length or steps, steps, length or steps), steps})


def as_sgd(move: Move[Any, Any]) -> Move[Any, Any]:
    """The move as if by plain SGD at the same learning rate and decay.

    The published trajectory methods assume it; with this, everything else is equal.
    """
    h = move.setting
    setting = SGDSetting(h.lr, 0.0, 0.0, h.decay, nesterov=False, maximize=h.maximize)
    return Move(_PLAIN, move.weight, move.gradient, SGDState(None), setting)


class Method(NamedTuple):
    """What kind of sweep: each part an object of its own.

    `ends` are the windows' (see `windows`). `reading` is how a recorded move is read before the
    sweep goes through it (`as_sgd`), None for the optimizer's own; `copies` how many states are in
    memory while a segment is played again; `damped` whether steps are gone through with `Spread`.
    """

    ends: frozenset[int]
    removal: Removal
    push: Push
    curvature: bool = True
    kink_width: float = 0.0
    reading: Callable[[Move[Any, Any]], Move[Any, Any]] | None = None
    copies: int = COPIES
    damped: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only the run's last state counts, along its own optimizer's steps."""
        return self.reading is None and len(self.ends) == 1


class StepValues(NamedTuple):
    """A step's values, (B, K) float64 per block; `ends_at` the state that they look ahead to."""

    step: Step
    values: list[Tensor]
    ends_at: int


Watch = Callable[[Passage], None]


def sweep(
    run: Trajectory, utility: Utility, method: Method, watch: Watch | None = None
) -> Iterator[StepValues]:
    """Values of every step, from the last to the first; `watch` sees each step."""
    replica, K = run.replica, len(utility.targets)
    carried, end = Carried(replica.parameters, K), len(run.steps)
    spread = Spread(replica.parameters) if method.damped else None
    for state in run.backward(method.copies):
        if state < len(run.steps):
            step = run.steps[state]
            replica.set_groups(step)
            yield StepValues(
                step, _through(replica, step, carried, method, end, watch, spread), end
            )
        if state in method.ends:
            carried, end = Carried(replica.parameters, K), state
            gradients = evaluate(utility, replica.model, replica.parameters).gradients
            with torch.no_grad():
                carried.add_to_weights(gradients)


def _through(
    replica: Replica,
    step: Step,
    carried: Carried,
    method: Method,
    end: int,
    watch: Watch | None,
    spread: Spread | None,
) -> list[Tensor]:
    """Takes what is carried through one step; returns the rows' values."""
    gradient = StepGradient(replica, step, method.kink_width)
    passage = taken_back(replica, step, carried, gradient, method.reading, spread)
    if watch is not None:
        watch(passage)
    curved, contractions = gradient.contract(passage.directions, curvature=method.curvature)
    with torch.no_grad():
        carried.add_to_weights(curved)
    return method.push(passage, contractions, end, method.removal)


def taken_back(
    replica: Replica,
    step: Step,
    carried: Carried,
    gradient: StepGradient,
    reading: Callable[[Move[Any, Any]], Move[Any, Any]] | None = None,
    spread: Spread | None = None,
) -> Passage:
    """Takes what is carried back through the step that the replica is about to take."""
    check_norm(replica, step, gradient.norm)
    moves = gradient.moves()
    groups = alike(moves if reading is None else [(name, reading(move)) for name, move in moves])
    rows = sum(len(block.ids) for block in step.blocks)
    after, directions = carried.pull(groups if spread is None else spread.damped(groups, rows))
    with torch.no_grad():
        directions = gradient.consumed_to_raw(directions)
    return Passage(replica, step, gradient, groups, after, directions)


def lookahead_parts(
    run: Trajectory,
    utility: Utility,
    samples: Collection[object],
    parts: Losses,
    *,
    damped: bool = True,
) -> dict[object, Tensor]:
    """Values of the parts of chosen samples, summed over their visits: by id, (T, K) float64.

    They add up to the values of `inrun.lookahead(run, utility, removal="drop")`. `parts(model,
    batch)` gives (B, T) terms that add up over T to the terms of the recorded `losses`, the same
    ones at each visit of a sample.
    """
    found: dict[object, Tensor] = {}
    wanted = set(samples)

    def watch(passage: Passage) -> None:
        step, gradient, directions = passage.step, passage.gradient, passage.directions
        for number, block in enumerate(step.blocks):
            rows = [row for row, name in enumerate(block.ids) if name in wanted]
            if not rows:
                continue
            values = -gradient.contract_parts(number, parts, directions)  # what dropping does
            if not step.number % CHECKED_EVERY or not found:
                _check_sums(values, -gradient.contract(directions)[1][number])
            for row in rows:
                name, of_row = block.ids[row], values[row]
                found[name] = _added(found[name], of_row) if name in found else of_row

    whole = windows(None, len(run.steps))
    method = Method(whole, removal_named("drop"), push_named("tangent"), damped=damped)
    for _ in sweep(run, utility, method, watch):
        pass
    return found


def _check_sums(parts: Tensor, rows: Tensor) -> None:
    sums = parts.sum(1)
    if not torch.allclose(sums, rows, rtol=1e-3, atol=1e-4 * float(rows.abs().max())):
        raise MisuseError(
            "The parts of the rows' losses do not add up to the rows' losses: their contributions "
            f"sum to {float(sums.sum()):.6g}, the rows' to {float(rows.sum()):.6g}. parts(model, "
            "batch) must give (B, T) terms whose sum over T is losses(model, batch)."
        )


def _added(a: Tensor, b: Tensor) -> Tensor:
    """The sum; a batch that was padded further has parts of 0 at its end."""
    if len(a) < len(b):
        a, b = b, a
    return torch.cat([a[: len(b)] + b, a[len(b) :]])
