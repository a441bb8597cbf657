"""Changes of a gradient that keep its shares: each element is left a factor of what it was.

Known are, alone and together, a common factor k, clipping by value, and masks of elements,

    changed = mask * clamp(k * raw, -limit, limit),

and a factor for each unit (a row, or a column, of a matrix), as adaptive clipping has. Any gradient
is an elementwise factor of any other; what makes these believable is that few numbers explain many
elements, and they are only believed where they could have failed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ALIKE = 0.999  # cosine from which on two units' gradients point the same way


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
