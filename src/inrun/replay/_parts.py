"""Look-ahead split within a sample: what each part of its loss, a token for instance, did.

A row's loss term is a sum over its parts, l_i = sum_t l_it, and so is its share; contracted with
the same direction, the parts' values add up to the row's.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.replay._dynamics import dynamics_named
from inrun.replay._folder import Step
from inrun.replay._gradient import StepGradient
from inrun.replay._horizon import Windows
from inrun.replay._push import push_named
from inrun.replay._removal import removal_named
from inrun.replay._replica import Losses
from inrun.replay._sweep import Method, sweep
from inrun.replay._trajectory import COPIES, Trajectory
from inrun.utility import Utility


def lookahead_parts(
    run: Trajectory,
    utility: Utility,
    samples: Collection[object],
    parts: Losses,
    horizon: int | None = None,
    *,
    copies: int = COPIES,
) -> dict[object, Tensor]:
    """Values of the parts of chosen samples, summed over their visits.

    They add up to the values of `inrun.lookahead(run, utility, horizon, removal="drop")`.

    Args:
        run: the recorded run.
        utility: the validation loss, of K targets.
        samples: ids; a sample's parts must be the same at each visit.
        parts: `parts(model, batch)` gives (B, T) terms that add up over T to the terms of the
            recorded `losses`.
        horizon: see `inrun.lookahead`.
        copies: see there.

    Returns:
        By id, (T, K) float64.

    Raises:
        MisuseError: the parts do not add up to the rows' losses.
    """
    found: dict[object, Tensor] = {}
    wanted = set(samples)

    def watch(step: Step, gradient: StepGradient, directions: dict[str, Tensor]) -> None:
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

    method = Method(
        Windows(horizon, len(run.steps)),
        dynamics_named("optimizer"),
        push_named("tangent", None, 1, 0),
        removal_named("drop"),
        True,
        0.0,
    )
    for _ in sweep(run, utility, method, copies, watch):
        pass
    return found


CHECKED_EVERY = 16


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
