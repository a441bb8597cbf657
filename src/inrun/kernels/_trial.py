"""The first time on a device: whether what Triton made there gives what the loops say.

A wrong compiler or driver must not become wrong values, so that on a thousand elements of all
kinds each kernel is compared with its loop, which runs as plain Python for that: once a process,
device and precision.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrun.kernels import _launched, _settled, _slope, _triton

SIZE, K = 1300, 2  # more than one program, the last one not full
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-9}

SETTLING = _settled.SettlingNumbers(
    tiny=1e-36, untouched=1e-17, eps=1e-8, second=1e-3, first=0.1, gain=2e-4, bend=-1e-6,
    rate=2e-3, of_momentum=1e-3, of_decay=1e-5,
)  # fmt: skip
SLOPE = _slope.SlopeNumbers(
    tiny=1e-36, untouched=1e-17, kept=0.5, entering=0.1, eps=1e-8, bend=-1e-4, gain=2e-4
)


@cache
def passed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether both kernels give what the loops give; if not, it has been said."""
    arrays = _arrays(dtype)
    g, w, m, v, opening, closing = (torch.from_numpy(a).to(device) for a in arrays)
    directions = torch.empty_like(opening)
    did = _launched.settle_adam(g, w, m, v, opening, closing, directions, SETTLING)
    slope = None if did is None else _launched.adam_slope(g, m, v, SLOPE)
    if did is None or slope is None:
        return False
    for found, want in zip((directions, did, slope), _by_loops(arrays), strict=True):
        apart = np.abs(found.cpu().numpy() - want).max() / np.abs(want).max()
        if not apart <= CLOSE[dtype]:
            _triton.give_up(f"a trial on {device} in {dtype} was off by {apart:.2g} of the largest")
            return False
    return True


def _arrays(dtype: torch.dtype) -> list[NDArray[Any]]:
    """Gradient, weight, moments and validation gradients; a part was never touched."""
    rng = np.random.default_rng(0)
    g, w = rng.standard_normal(SIZE) * 1e-3, rng.random(SIZE)
    m, v = rng.random(SIZE) * 1e-3, rng.random(SIZE) * 1e-6 + 1e-3 * g**2
    for array in (g, m, v):
        array[:100] = 0
    kind = np.float32 if dtype == torch.float32 else np.float64
    return [a.astype(kind) for a in (g, w, m, v, rng.random((K, SIZE)), rng.random((K, SIZE)))]


def _by_loops(arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Directions, what momentum and decay did, and the slope."""
    g, w, m, v, opening, closing = arrays
    directions, slope = np.empty_like(opening), np.empty_like(g)
    with np.errstate(all="ignore"):
        row = np.array([*SETTLING, 0.0, 1.0], g.dtype)
        sums = _settled._loop(g, w, m, v, opening, closing, directions, row, True, 0, SIZE)
        _slope._loop(g, m, v, slope, np.array([*SLOPE, 0.0], g.dtype), 0, SIZE)
    return [directions, sums * [[SETTLING.of_momentum], [SETTLING.of_decay]], slope]
