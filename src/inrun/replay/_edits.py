"""Whether anything but the recorded steps moved what a replay starts from: weights, moments.

A replay goes from step to step by the optimizer alone. Weights that were clipped, normalised again,
averaged or reset between two steps, and moments that were emptied, are states that it never comes
to. So each step's opening state is held against the last one's closing state.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inrun.optim import trained_parameters

Marks = dict[str, tuple[object, ...]]
"""By what is marked: its place and a sum of its bits."""


def marks(named: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Marks:
    """Of the weights and the optimizer's state, and of which parameters it holds.

    Args:
        named: the recorded parameters by name.
        optimizer: that steps them.
    """
    held = {id(p) for p in trained_parameters(optimizer)}
    marked: dict[str, Tensor] = {}
    for name, p in named.items():
        marked[name] = p.detach()
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                marked[f"the optimizer's {key} of {name}"] = value.detach()
    sums = [_bits(t) for t in marked.values()]
    device = sums[0].device if sums else None
    there = torch.stack([s.to(device) for s in sums]).tolist() if sums else []  # one wait
    found: Marks = {"the optimizer's parameters": (held == {id(p) for p in named.values()},)}
    for (what, t), number in zip(marked.items(), there, strict=True):
        found[what] = tuple(t.shape), t.dtype, number
    return found


def edited(before: Marks, now: Marks) -> str | None:
    """What is not as it was, if anything."""
    for what in [*before, *now]:
        if before.get(what) != now.get(what):
            return what
    return None


def _bits(t: Tensor) -> Tensor:
    """A sum of the bits, as integers of 64, in which each place counts otherwise."""
    octets = t.reshape(-1).contiguous().view(torch.uint8)
    filled = octets.new_zeros(-(-len(octets) // 8) * 8)
    filled[: len(octets)] = octets
    words = filled.view(torch.int64)
    return (words * (2 * torch.arange(len(words), device=t.device) + 1)).sum()
