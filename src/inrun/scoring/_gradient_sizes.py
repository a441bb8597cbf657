"""How large each sample's own gradient is: the norm of its share of what the optimizer consumed.

    size_b = sqrt( sum over parameters |scale * share_b|^2 ),   share_b = sum over the uses

Parameters without a captured use (see `coverage()`) have no part in it. Letters: B samples of a
block, N of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inrun.capture import Block
from inrun.distributed import is_sharded, whole
from inrun.factors import compute_dtype, share_squares
from inrun.scoring._plan import ParameterPlan


def gradient_sizes(plans: Mapping[str, ParameterPlan], blocks: Sequence[Block]) -> Tensor:
    """Sizes (N,) of all blocks' samples, on a device; factors must still be held.

    Args:
        plans: of the parameters, by name.
        blocks: the step's samples.
    """
    squares: list[Tensor | None] = [None] * len(blocks)
    for name, plan in plans.items():
        scale = _scale(plan)
        for number, block in enumerate(blocks):
            met = _squares(plan, scale, block, name)
            if met is not None:
                before = squares[number]
                squares[number] = met if before is None else before + met.to(before.device)
    found = [
        torch.zeros(block.samples) if square is None else square
        for block, square in zip(blocks, squares, strict=True)
    ]
    return torch.cat([square.to(found[0].device) for square in found]).sqrt()


def _scale(plan: ParameterPlan) -> Tensor | float:
    """What shares are multiplied by, elementwise for the whole parameter where it is a tensor."""
    scale, p = plan.share_scale, plan.parameter
    if isinstance(scale, Tensor) and scale.ndim and is_sharded(p):
        return whole(scale.unsqueeze(0), p)[0]
    return scale


def _squares(plan: ParameterPlan, scale: Tensor | float, block: Block, name: str) -> Tensor | None:
    """|scale * share_b|^2, (B,), of one parameter; None where it has no use."""
    p = plan.parameter
    factors = [factor.on(p.device) for factor in block.factors.get(name, [])]
    return share_squares(factors, compute_dtype(p), scale) if factors else None
