"""Many small tensors as a few flat ones: a call for each costs more than their elements do."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

SMALL = 4096  # elements; above it the elements cost more than the calls


def flat(tensors: list[Tensor]) -> Tensor:
    """All elements, one tensor after the other; tensors of one dtype and device, at least one."""
    runs = [list(run) for _, run in groupby(tensors, _shape)]
    if 4 * len(runs) > len(tensors):
        joined: Tensor = torch._C._nn.flatten_dense_tensors(tensors)  # reshape and cat, called once
        return joined
    rows = [torch.stack(run).view(-1) for run in runs]  # a quarter of that, for tensors alike
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def few(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same elements in few flat tensors: small ones of a dtype and device are joined."""
    alike: dict[tuple[torch.dtype, torch.device], dict[torch.Size, list[Tensor]]] = {}
    large: list[Tensor] = []
    for t in tensors:
        if t.numel() > SMALL:
            large.append(t.reshape(-1))
        else:
            alike.setdefault((t.dtype, t.device), {}).setdefault(t.shape, []).append(t)
    return large + [flat([t for run in runs.values() for t in run]) for runs in alike.values()]


_shape = attrgetter("shape")
