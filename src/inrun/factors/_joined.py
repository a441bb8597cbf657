"""Many small tensors as a few flat ones: a call for each costs more than their elements do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SMALL = 4096  # elements; above it the elements cost more than the calls


def flat(tensors: list[Tensor]) -> Tensor:
    """All elements, one tensor after the other; tensors of one dtype and device, at least one."""
    joined: Tensor = torch._C._nn.flatten_dense_tensors(tensors)  # reshape and cat, called once
    return joined


def few(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same elements in few flat tensors: small ones of a dtype and device are joined."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    large: list[Tensor] = []
    for t in tensors:
        if t.numel() > SMALL:
            large.append(t.reshape(-1))
        else:
            alike.setdefault((t.dtype, t.device), []).append(t)
    return large + [flat(small) for small in alike.values()]
