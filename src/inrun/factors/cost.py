"""Which way to contract, counted in multiply-adds and bytes; few large tensors in place of many.

For one sample with T positions, a matrix share of M x N and K directions:

    push         sum_t left_t . (Q_k right_t)      K * T * (M * N + M)
    materialize  c = sum_t left_t right_t^T, <Q_k, c>   T * M * N + K * M * N, and M * N numbers

    low rank    Y = Q start, R = Q^T orth(Y), then both through n positions of all samples:
                K * (2 * r * M * N + 2 * r^2 * M + n * r * (M + N))

A sample's share is materialized where that is less work and a block of samples fits the limit. A
low rank has to be several times less work, since thin products are slower for their size.

Many small tensors are passed over as a few flat ones: a call for each costs more than their
elements do.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

MATERIALIZED_BYTES = 64 * 2**20  # what a block of materialized shares may take
CACHED_BYTES = 8 * 2**20  # what a CPU makes of a block of samples on its way: its caches hold that
DEVICE_BYTES = 256 * 2**20  # the same where each block's launch costs more than its memory
THIN = 3  # how much slower a multiply-add of a thin product is
SMALL = 4096  # elements; above it the elements cost more than the calls

_shape = attrgetter("shape")


def push_flops(positions: int, rows: int, columns: int, directions: int) -> int:
    """Multiply-adds a sample of pushing every direction through the use."""
    return directions * positions * (rows * columns + rows)


def materialize_flops(positions: int, rows: int, columns: int, directions: int) -> int:
    """Multiply-adds a sample of building the share and taking its inner products."""
    return positions * rows * columns + directions * rows * columns


def low_rank_flops(positions: int, rows: int, columns: int, directions: int, rank: int) -> int:
    """Multiply-adds of factorizing the directions and pushing them through all positions."""
    factorizing = 2 * rank * rows * columns + 2 * rank * rank * rows
    return directions * (factorizing + positions * rank * (rows + columns))


def low_rank_is_cheaper(
    positions: int, rows: int, columns: int, directions: int, rank: int
) -> bool:
    """Whether directions of that rank are less work than dense ones, for all samples' positions."""
    dense = positions * rows * columns  # for many directions a share is built, at about this
    return THIN * low_rank_flops(positions, rows, columns, directions, rank) < dense


def samples_per_block(share_elements: int, itemsize: int, limit: int = MATERIALIZED_BYTES) -> int:
    """How many materialized shares fit the limit; 0 where not even one does."""
    return limit // max(1, share_elements * itemsize)


def materialize_is_cheaper(
    positions: int, rows: int, columns: int, directions: int, itemsize: int
) -> bool:
    """Whether to materialize blocks of shares instead of pushing directions through."""
    fits = samples_per_block(rows * columns, itemsize) > 0
    build = materialize_flops(positions, rows, columns, directions)
    return fits and build < push_flops(positions, rows, columns, directions)


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
