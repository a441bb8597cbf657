"""Before the optimizer steps: for each parameter what its direction will be made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inrun.capture import Block, Processes
from inrun.directions import ESTIMATORS, Direction, SampleDirection, evaluations
from inrun.errors import MisuseError
from inrun.factors import compute_dtype
from inrun.optim import Diagonal, History, Move, Slope

SMOOTHED_WORK = 240_000_000  # elements displaced: about a second a step on one core


@dataclass(frozen=True)
class ParameterPlan:
    """One parameter at one step, computed from the state before it.

    `optimizer`: the number of the one that holds it. `scale`: what the consumed gradient is in
    units of the shares' sum, a number, or elementwise where it was changed so; None where there is
    nothing to tell it by, and nothing to scale.
    """

    optimizer: int
    parameter: Tensor
    direction: Direction
    move: Move[Any, Any]
    slope: Slope
    scale: Tensor | float | None
    history: History
    processes: int = 1

    @property
    def share_scale(self) -> Tensor | float:
        """What to multiply shares by, so that they sum to the consumed gradient."""
        return 1.0 if self.scale is None else self.scale / self.processes


def smoothing_work(moving: Iterable[Move[Any, Any]], samples: int) -> float:
    """Elements that smoothing a step would displace, dearer rules counted as several."""
    elements = sum(m.gradient.numel() * m.rule.effort(m.gradient.shape) for m in moving)
    return evaluations(samples) * elements


class Smoothing:
    """Which parameters of a step are smoothed: where the rule acts like a sign and it is cheap."""

    def __init__(self, direction: Direction, steps: int):
        self._direction, self._steps = direction, steps

    def direction_for(self, move: Move[Any, Any], work: float) -> Direction:
        """The direction of one parameter; `work` is what smoothing the whole step costs."""
        taken = move.steps_taken()
        young = taken is not None and taken < self._steps
        if young and work <= SMOOTHED_WORK and self._direction.name == "path":
            return ESTIMATORS["path-smoothed"]
        return self._direction


def plan_parameter(
    optimizer: int,
    p: Tensor,
    move: Move[Any, Any],
    direction: Direction,
    scale: Tensor | float | None,
    *,
    held: bool,
    processes: int = 1,
) -> ParameterPlan:
    """Slope and history of one parameter; `held`: its shares are still to be contracted."""
    kept = move.frozen() if isinstance(direction, SampleDirection) else move
    return ParameterPlan(
        optimizer=optimizer,
        parameter=p,
        direction=direction,
        move=kept,
        slope=direction.slope(move).kept() if held else Diagonal(0.0),
        scale=scale,
        history=direction.history(move),
        processes=processes,
    )


def elementwise_scale(
    name: str, gradient: Tensor, blocks: Sequence[Block], processes: Processes
) -> Tensor:
    """What clipping by value left of each element, as a factor of the sum of shares.

    Raises:
        MisuseError: the gradient was changed in some other way, or the shares are not there to
            compare it with.
    """
    factors = [factor for block in blocks for factor in block.factors.get(name, [])]
    if not factors:
        raise MisuseError(
            f"The gradient of {name} was changed element by element between backward() and step() "
            "(clip_grad_value_ does this). With capture='stream' the shares are gone by then. "
            "Attach with capture='hold', or clip by norm."
        )
    dtype = compute_dtype(gradient)
    raw = processes.mean(torch.stack([factor.total(dtype) for factor in factors]).sum(0))
    changed = gradient.detach().to(dtype)
    if not _is_clip(raw, changed):
        raise MisuseError(
            f"The gradient of {name} was changed between the last attribution.batch(ids) block and "
            "step() by something that is neither a common factor nor clipping by value: a backward "
            "pass outside a block, or terms added to .grad by hand (use weight_decay). No sample "
            "accounts for it."
        )
    return torch.where(raw == 0, torch.zeros_like(raw), changed / raw)


def _is_clip(raw: Tensor, changed: Tensor) -> bool:
    """Whether large elements were cut to one size and the others left alone, to rounding."""
    close = 1e-3 if raw.dtype == torch.float32 else 1e-9
    cut = changed.abs() < raw.abs() * (1 - close)
    size = changed[cut].abs()
    limit = size.max() if size.numel() else raw.abs().max()
    clipped = raw.clamp(-limit, limit)
    return bool(((changed - clipped).abs() <= close * limit).all())


@contextmanager
def moved(displacements: Mapping[Tensor, Tensor | float]) -> Iterator[None]:
    """Parameters displaced by -d while inside; afterwards the very same storage as before."""
    before = {p: p.data for p in displacements}
    try:
        for p, d in displacements.items():
            p.data = p.data - d
        yield
    finally:
        for p, data in before.items():
            p.data = data
