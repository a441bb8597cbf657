"""What became of gradients between the backward pass and the step: each element is left a factor.

Known are, alone and together, a common factor k, clipping by value, and masks of elements,

    changed = mask * clamp(k * raw, -limit, limit),

and a factor for each unit (a row, or a column, of a matrix), as adaptive clipping has. Any gradient
is an elementwise factor of any other; what makes these believable is that few numbers explain many
elements, and they are only believed where they could have failed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Capture, GradientCheck
from inrun.distributed import Processes, own_part, part_of
from inrun.errors import MisuseError
from inrun.factors import compute_dtype
from inrun.optim import Move
from inrun.scoring._plan import ParameterPlan

ALIKE = 0.999  # cosine from which on two units' gradients point the same way


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
    before = math.hypot(*(norm for name, norm in check.scaling.norms.items() if name in moves))
    return {
        "learning_rate": max(known, default=math.nan),
        "gradient_norm": check.scaling.consumed_norm,
        "gradient_scale": check.scaling.consumed_norm / before if before else math.nan,
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
    norms, gaps = capture.check.scaling.norms, set(capture.check.gaps)
    scales: dict[str, Tensor | float | None] = {}
    for name, k in capture.check.scaling.scales(without).items():
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


class Precision(NamedTuple):
    """How far what was computed may be from what explains it.

    `element`: each element, in units of the largest; `whole`: the norm of all; `least`: each
    element, for what lies between the smallest numbers of the gradient's precision.
    """

    element: float
    whole: float
    least: float

    @staticmethod
    def of(gradient: torch.dtype, computed: float) -> Precision:
        """Of a gradient's dtype, and the eps of what it was computed in, which may be coarser."""
        finfo = torch.finfo(gradient)
        least, eps = finfo.smallest_normal * finfo.eps, max(finfo.eps, computed)
        if eps > torch.finfo(torch.float32).eps:  # shares are summed in more
            return Precision(8 * eps, 6 * eps, least)
        close = 1e-9 if eps == torch.finfo(torch.float64).eps else 1e-3
        return Precision(close, close, least)

    def are_alike(self, found: Tensor, expected: Tensor) -> bool:
        """Whether one is the other, rounded."""
        if not found.numel():
            return True
        apart, size = (found - expected).abs(), found.abs()
        root = found.numel() ** 0.5
        return bool(
            (apart <= self.element * size.max() + self.least).all()
            and apart.norm() <= self.whole * size.norm() + self.least * root
        )


def factor_between(raw: Tensor, changed: Tensor, precision: Precision) -> Tensor | None:
    """What each element was multiplied by; None where no known change explains it, to rounding."""
    if not raw.numel():  # of a sharded parameter this process may hold nothing
        return torch.zeros_like(raw)
    kept = changed != 0
    clip = _clip(raw[kept], changed[kept], precision)
    if clip is not None:
        return torch.zeros_like(raw).masked_scatter(kept, clip)
    if raw.ndim < 2:
        return None
    rows = raw.flatten(1), changed.flatten(1)
    units = _of_units(*rows, precision)
    if units is None:
        across = _of_units(rows[0].T, rows[1].T, precision)
        units = None if across is None else across.T
    return None if units is None else units.expand_as(rows[0]).reshape(raw.shape)


def _clip(raw: Tensor, changed: Tensor, precision: Precision) -> Tensor | None:
    """Where elements were multiplied by one number and the large ones cut to one size."""
    if not raw.numel():
        return raw
    limit = changed.abs().max()
    uncut = changed.abs() < limit * (1 - precision.element)
    r, c = raw[uncut], changed[uncut]
    square = r.square().sum()
    if square > 0:
        k = (r * c).sum() / square
    else:  # everything was cut, by however much
        smallest = raw.abs().min()
        if smallest == 0:
            return None
        k = (changed[0] / raw[0]).sign() * limit / smallest
    alone = (changed * raw).sign().sum().sign()  # no factor, or a sign: k is of few elements there
    for factor in (k, alone):
        clipped = (factor * raw).clamp(-limit, limit)
        if precision.are_alike(changed, clipped) or _mostly_cut(factor * raw, changed, precision):
            return torch.where(raw == 0, factor, clipped / raw)
    return None


def _mostly_cut(raw: Tensor, changed: Tensor, precision: Precision) -> bool:
    """Whether most elements are far beyond the limit, and were cut to just that.

    What rounding did to the large gradient then exceeds the small limit, for the elements between.
    """
    limit, error = changed.abs().max(), precision.element * raw.abs().max()
    cut = raw.abs() > limit + error
    between = (changed - raw.clamp(-limit, limit)).abs()[~cut] <= error
    exact = changed[cut] == limit * raw[cut].sign()
    return bool(exact.all() and between.all() and 2 * cut.sum() >= cut.numel())


def _of_units(raw: Tensor, changed: Tensor, precision: Precision) -> Tensor | None:
    """Each row's factor (rows, 1), where each was multiplied by a number of its own.

    Rows of fewer than three elements prove nothing (of two classes both sum to zero), nor do rows
    that all point the same way, as those of one sample's gradient do.
    """
    if raw.shape[0] < 2 or raw.shape[1] < 3:
        return None
    sizes = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    there = sizes[:, 0] > 1e-6 * sizes.max()
    units = raw[there] / sizes[there]
    largest = units[sizes[there, 0].argmax()]
    if bool(((units @ largest).abs() > ALIKE).all()):
        return None
    along = (raw * changed).sum(1, keepdim=True)
    factors = torch.where(sizes > 0, along / sizes.square().clamp_min(1e-300), 0.0)
    return factors if precision.are_alike(changed, factors * raw) else None
