"""What became of gradients between backward pass and step: a common factor, or see `_changes`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Capture, GradientCheck
from inrun.distributed import Processes, own_part, part_of
from inrun.errors import MisuseError
from inrun.factors import compute_dtype
from inrun.optim import Move
from inrun.scoring._changes import Precision, factor_between
from inrun.scoring._plan import ParameterPlan


def common_scale(plans: Mapping[str, ParameterPlan]) -> float:
    """The one factor between shares and consumed gradient that `stream` can still apply."""
    scales = [plan.scale for plan in plans.values() if isinstance(plan.scale, float)]
    if scales and max(scales) - min(scales) > 1e-3 * max(abs(k) for k in scales):
        raise MisuseError(
            "Parameters' gradients were scaled by different factors between backward() and "
            "step(). With capture='stream' values are already summed over parameters. Attach "
            "with capture='hold'."
        )
    return float(np.mean(scales)) if scales else 1.0


def norms_of(plans: Mapping[str, ParameterPlan]) -> dict[str, float]:
    """Each gradient's norm, 0 where there is none any more, with one transfer from the device."""
    if not plans:
        return {}
    gradients = [plan.parameter.grad for plan in plans.values()]
    norms = [
        torch.zeros((), device=plan.parameter.device)
        if g is None
        else torch.linalg.vector_norm(own_part(g.detach()), dtype=torch.float64)
        for g, plan in zip(gradients, plans.values(), strict=True)
    ]
    rows = torch.stack([norm.detach().double() for norm in norms]).cpu().tolist()
    return dict(zip(plans, rows, strict=True))


def circumstances(moves: Mapping[str, Move[Any, Any]], check: GradientCheck) -> dict[str, float]:
    """What the books say beside a step's entries, once the check has read the gradients.

    The norms were measured for the check; nothing is read from the device for this.
    """
    rates = [getattr(move.setting, "lr", math.nan) for move in moves.values()]
    known = [abs(rate) for rate in rates if isinstance(rate, float | int)]
    before = math.hypot(*(norm for name, norm in check.norms.items() if name in moves))
    return {
        "learning_rate": max(known, default=math.nan),
        "gradient_norm": check.consumed_norm,
        "gradient_scale": check.consumed_norm / before if before else math.nan,
    }


def scales_of(
    gradients: Mapping[str, Tensor],
    capture: Capture,
    blocks: Sequence[Block],
    processes: Processes,
    without: Collection[str] = (),
) -> dict[str, Tensor | float | None]:
    """For each parameter what became of its gradient between the backward pass and the step.

    `without` names parameters that nothing moves in this step.
    """
    norms, gaps = capture.check.norms, set(capture.check.gaps)
    scales: dict[str, Tensor | float | None] = {}
    for name, k in capture.check.scales(without).items():
        nothing = k is not None and norms[name] == 0
        unseen = name in gaps and not any(block.factors.get(name) for block in blocks)
        if nothing or unseen:
            scales[name] = None
        elif k is None:
            scales[name] = elementwise_scale(
                name, capture.trained[name], gradients[name], blocks, processes,
                capture.check.computed(name),
            )  # fmt: skip
        else:
            scales[name] = k
    return scales


def elementwise_scale(
    name: str,
    p: Tensor,
    gradient: Tensor,
    blocks: Sequence[Block],
    processes: Processes,
    computed: float = 0.0,
) -> Tensor:
    """What was left of each element, as a factor of the sum of shares.

    `gradient` is this process's part of what is consumed, `computed` the eps of what the shares are
    made of.
    """
    factors = [factor for block in blocks for factor in block.factors.get(name, [])]
    if not factors:
        raise MisuseError(
            f"The gradient of {name} was changed between backward() and step() by something that "
            "is no common factor (clip_grad_value_ does this, and masks). With capture='stream' "
            "and scoring=inrun.Window the shares are gone by then. Attach with capture='hold' and "
            "inrun.EveryStep(), or clip by norm."
        )
    dtype = compute_dtype(gradient)
    own = torch.stack([factor.on(p.device).total(dtype) for factor in factors]).sum(0)
    everyones = processes.mean(own)
    raw = part_of(everyones, p)
    changed = gradient.detach().to(dtype)
    factor = factor_between(raw, changed, Precision.of(gradient.dtype, computed))
    if factor is None:
        raise MisuseError(
            f"The gradient of {name} was changed between the last attribution.batch(ids) block and "
            "step() by something that is neither a common factor nor clipping by value, nor a mask "
            "or a factor for each unit: a backward pass outside a block, terms added to .grad by "
            "hand, or elements that were mixed with each other (centralisation, a projection). No "
            "sample accounts for it. Run a penalty's backward pass inside "
            "attribution.unattributed(), or use weight_decay."
        )
    return factor
