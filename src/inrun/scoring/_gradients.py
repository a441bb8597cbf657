"""What became of gradients between the backward pass and the step: clipping, loss scales, masks.

Changes that keep the shares leave each element a factor of what it was. Known are, alone and
together, a common factor k, clipping by value, and masks of elements,

    changed = mask * clamp(k * raw, -limit, limit),

and a factor for each unit (a row, or a column, of a matrix), as adaptive clipping has. Any gradient
is an elementwise factor of any other; what makes these believable is that few numbers explain many
elements, and they are only believed where they could have failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Capture
from inrun.distributed import Processes, own_part, part_of
from inrun.errors import MisuseError
from inrun.factors import compute_dtype
from inrun.scoring._plan import ParameterPlan

ALIKE = 0.999  # cosine from which on two units' gradients point the same way


def common_scale(plans: Mapping[str, ParameterPlan]) -> float:
    """The one factor between shares and consumed gradient that `stream` can still apply.

    Raises:
        MisuseError: parameters were scaled by different factors.
    """
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


def scales_of(
    gradients: Mapping[str, Tensor],
    capture: Capture,
    blocks: Sequence[Block],
    processes: Processes,
) -> dict[str, Tensor | float | None]:
    """For each parameter what became of its gradient between the backward pass and the step.

    Args:
        gradients: that the step consumes, which the check has taken down.
        capture: the parameters and the check.
        blocks: the step's samples.
        processes: that they are spread over.
    """
    norms, gaps = capture.check.norms, set(capture.check.gaps)
    scales: dict[str, Tensor | float | None] = {}
    for name, k in capture.check.scales().items():
        nothing = k is not None and norms[name] == 0
        unseen = name in gaps and not any(block.factors.get(name) for block in blocks)
        if nothing or unseen:
            scales[name] = None
        elif k is None:
            scales[name] = elementwise_scale(
                name, capture.trained[name], gradients[name], blocks, processes
            )
        else:
            scales[name] = k
    return scales


def elementwise_scale(
    name: str, p: Tensor, gradient: Tensor, blocks: Sequence[Block], processes: Processes
) -> Tensor:
    """What was left of each element, as a factor of the sum of shares.

    Args:
        name: of the parameter.
        p: the parameter.
        gradient: that is consumed, this process's part of it.
        blocks: the step's samples.
        processes: that the step's samples are spread over.

    Raises:
        MisuseError: the gradient was changed in some other way, or the shares are not there to
            compare it with.
    """
    factors = [factor for block in blocks for factor in block.factors.get(name, [])]
    if not factors:
        raise MisuseError(
            f"The gradient of {name} was changed between backward() and step() by something that "
            "is no common factor (clip_grad_value_ does this, and masks). With capture='stream' "
            "the shares are gone by then. Attach with capture='hold', or clip by norm."
        )
    dtype = compute_dtype(gradient)
    own = torch.stack([factor.on(p.device).total(dtype) for factor in factors]).sum(0)
    everyones = processes.mean(own)
    raw = part_of(everyones, p)
    changed = gradient.detach().to(dtype)
    if not explains(raw, changed):
        raise MisuseError(
            f"The gradient of {name} was changed between the last attribution.batch(ids) block and "
            "step() by something that is neither a common factor nor clipping by value, nor a mask "
            "or a factor for each unit: a backward pass outside a block, terms added to .grad by "
            "hand, or elements that were mixed with each other (centralisation, a projection). No "
            "sample accounts for it. Run a penalty's backward pass inside "
            "attribution.unattributed(), or use weight_decay."
        )
    return torch.where(raw == 0, torch.zeros_like(raw), changed / raw)


def explains(raw: Tensor, changed: Tensor) -> bool:
    """Whether one of the known changes made one gradient of the other, to rounding.

    Args:
        raw: the sum of shares.
        changed: what the optimizer consumes, of the same shape.
    """
    if not raw.numel():  # of a sharded parameter this process may hold nothing
        return True
    close = 1e-3 if raw.dtype == torch.float32 else 1e-9
    kept = changed != 0
    if _is_clip(raw[kept], changed[kept], close):
        return True
    if raw.ndim < 2:
        return False
    rows = raw.flatten(1), changed.flatten(1)
    return _is_by_unit(*rows, close) or _is_by_unit(rows[0].T, rows[1].T, close)


def _is_clip(raw: Tensor, changed: Tensor, close: float) -> bool:
    """Whether elements were multiplied by one number and the large ones cut to one size."""
    if not raw.numel():
        return True
    limit = changed.abs().max()
    uncut = changed.abs() < limit * (1 - close)
    r, c = raw[uncut], changed[uncut]
    square = r.square().sum()
    if square > 0:
        k = (r * c).sum() / square
    else:  # everything was cut, by however much
        smallest = raw.abs().min()
        if smallest == 0:
            return False
        k = (changed[0] / raw[0]).sign() * limit / smallest
    clipped = (k * raw).clamp(-limit, limit)
    return bool(((changed - clipped).abs() <= close * limit).all())


def _is_by_unit(raw: Tensor, changed: Tensor, close: float) -> bool:
    """Whether each row was multiplied by a number of its own.

    Rows of fewer than three elements prove nothing (of two classes both sum to zero), nor do rows
    that all point the same way, as those of one sample's gradient do.
    """
    if raw.shape[0] < 2 or raw.shape[1] < 3:
        return False
    sizes = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    there = sizes[:, 0] > 1e-6 * sizes.max()
    units = raw[there] / sizes[there]
    largest = units[sizes[there, 0].argmax()]
    if bool(((units @ largest).abs() > ALIKE).all()):
        return False
    along = (raw * changed).sum(1, keepdim=True)
    factors = torch.where(sizes > 0, along / sizes.square().clamp_min(1e-300), 0.0)
    return bool(((changed - factors * raw).abs() <= close * changed.abs().max()).all())
