"""Changes of a gradient that keep its shares: each element is left a factor of what it was.

Known are, alone and together, a common factor k, clipping by value, and masks of elements,

    changed = mask * clamp(k * raw, -limit, limit),

and a factor for each unit (a row, or a column, of a matrix), as adaptive clipping has. Any gradient
is an elementwise factor of any other; what makes these believable is that few numbers explain many
elements, and they are only believed where they could have failed.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 0.999  # cosine from which on two units' gradients point the same way


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
