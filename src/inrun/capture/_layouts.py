"""From owner maps to the layouts that rules read, and what is said where there is none.

Where samples follow one another in equal parts along one axis, as they mostly do, the layout is
that axis; any other map is given slot by slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inrun.operations import Layout, Slots
from inrun.owners import MIXED, NONE, SUM, UNKNOWN, Map, adopted

_REASONS = {
    MIXED: "its slots mix samples ({why})",
    SUM: "it is computed from a sum over samples ({why})",
    UNKNOWN: "whose slots are whose is not known after {why}",
}


def missing_reason(name: str, maps: Sequence[Map | None]) -> str | None:
    """Why a use's shares cannot be told; None where they can."""
    for m in maps:
        if m is not None and m.low < NONE:
            code = next(c for c in (UNKNOWN, MIXED, SUM) if bool((m.codes == c).any()))
            return f"{name}: " + _REASONS[code].format(why=m.why or name)
    return None


def layouts_of(maps: Sequence[Map | None], samples: int) -> Sequence[Layout | Slots | None]:
    """Each output's layout; None where it is the same for all samples."""
    m = maps[0] if len(maps) == 1 else None
    if m is not None:  # one list for all operations of such outputs
        return m.remembered(("layouts", samples), lambda: [_layout(m, samples)])
    return [
        None if m is None else m.remembered(("layout", samples), lambda m=m: _layout(m, samples))  # type: ignore[misc]
        for m in maps
    ]


def _layout(m: Map, samples: int) -> Layout | Slots:
    codes = m.codes
    if m.low == NONE < m.high:
        codes = adopted(codes, samples, alone=False)
    if samples == 1 and bool((codes >= 0).all()):
        return Layout(None)
    axes = [i for i, size in enumerate(codes.shape) if size != 1]
    if len(axes) == 1 and codes.numel() and codes.numel() % samples == 0:
        flat, slots = codes.flatten(), codes.numel() // samples
        order = torch.arange(samples, dtype=codes.dtype)
        for layout, regular in (
            (Layout(axes[0]), order.repeat_interleave(slots)),
            (Layout(axes[0], False), order.repeat(slots)),
        ):
            if torch.equal(flat, regular):
                return layout
    return Slots(codes, samples)
