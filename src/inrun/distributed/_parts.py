"""A parameter's part in this process, and the whole again: the arithmetic of `DTensor` placements.

Parts are cut as `torch.chunk` cuts them, so that the last ones may be smaller or empty. Letters:
K leading rows, such as targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether a tensor is spread over processes."""
    kind: Any = type(t)
    return _of_shards(kind)


@cache
def _of_shards(kind: Any) -> bool:
    """Whether a class is `DTensor` or one of it, told by name: the class is slow to import."""
    return any(base.__name__ == "DTensor" for base in kind.__mro__)


def own_part(t: Tensor) -> Tensor:
    """What this process holds of a tensor, the live storage itself; a plain tensor is all of it."""
    if not is_sharded(t):
        return t
    with torch.no_grad():
        part: Tensor = t.detach().to_local()  # type: ignore[attr-defined]
    return part


def own_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state of one parameter, by this process's parts."""
    return {
        name: own_part(value) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def parts(p: Tensor) -> int:
    """In how many different parts a parameter is held; 1 for a plain one."""
    return _product(size for size, _, dim in _axes(p) if dim is not None)


def part_of(whole_K: Tensor, p: Tensor, leading: int = 0) -> Tensor:
    """This process's part of a tensor that has the parameter's axes after `leading` others."""
    for size, rank, dim in _axes(p):
        if dim is not None:
            cut = whole_K.chunk(size, dim + leading)
            nothing = whole_K.narrow(dim + leading, 0, 0)
            whole_K = cut[rank] if rank < len(cut) else nothing
    return whole_K


def whole(own_K: Tensor, p: Tensor) -> Tensor:
    """Gathers every process's part (K, *part); all processes of the parameter call it.

    Returns:
        (K, *shape of the parameter).
    """
    if not is_sharded(p):
        return own_K
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((len(own_K), *p.shape))
    placements = [
        Shard(placement.dim + 1) if placement.is_shard() else placement
        for placement in p.placements  # type: ignore[attr-defined]
    ]
    gathered: Tensor = DTensor.from_local(
        own_K.contiguous(), p.device_mesh, placements, run_check=False,  # type: ignore[attr-defined]
        shape=shape, stride=_strides(shape),
    ).full_tensor()  # fmt: skip
    return gathered


def _axes(p: Tensor) -> list[tuple[int, int, int | None]]:
    """(processes, this one's place, axis that is cut or None) for each axis of the mesh."""
    if not is_sharded(p):
        return []
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    return [
        (mesh.size(i), mesh.get_local_rank(i), placement.dim if placement.is_shard() else None)
        for i, placement in enumerate(p.placements)  # type: ignore[attr-defined]
    ]


def _strides(shape: torch.Size) -> tuple[int, ...]:
    return tuple(_product(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape)))


def _product(numbers: Any) -> int:
    product = 1
    for number in numbers:
        product *= int(number)
    return product
