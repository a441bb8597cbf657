"""The invariant's sums of many small parameters, a few operations for all of one shape.

Letters: P parameters of one shape (M, N), B samples, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inrun.capture._probe import Probes
from inrun.distributed import is_sharded, own_part
from inrun.factors import SMALL, Dense, Factor, Outer


def is_small(parameter: Tensor, factor: Factor | None = None, size: int = 0) -> bool:
    """Whether a parameter, or its shares, are better met together with others'.

    Args:
        parameter: which one.
        factor: its shares.
        size: how many numbers they hold, of which those of outer products must be few.
    """
    plain = parameter.numel() <= SMALL and not is_sharded(parameter)
    if factor is None or not plain or type(factor) is Dense:
        return plain
    return type(factor) is Outer and size <= SMALL


def of_gradients(probes: Probes, names: Sequence[str], gradients: Mapping[str, Tensor]) -> Tensor:
    """<r, gradient> and the gradient's norm, (P, 2) float64, of parameters of one shape."""
    if len(names) == 1:  # nobody to be met together with
        (name,) = names
        return probes[name].and_norm(own_part(gradients[name])).unsqueeze(0)
    left_PM, right_PN = probes.sides(names)
    P, M = left_PM.shape
    N = right_PN.shape[1]
    G_PMN = torch.stack([gradients[name] for name in names]).reshape(P, M, N)
    along_P = _met(left_PM, G_PMN.to(left_PM.dtype), right_PN)
    wide = None if G_PMN.device.type == "mps" else torch.float64
    norms_P = torch.linalg.vector_norm(G_PMN, dim=(1, 2), dtype=wide)
    return torch.stack([along_P.double(), norms_P.double()], 1)


def of_shares(
    probes: Probes, factors: Sequence[tuple[str, Factor]]
) -> list[tuple[list[str], Tensor]]:
    """The sums of <r, share_b> and of their sizes, (P, 2) float64, of small shares' groups.

    A parameter that is used several times is there as often.
    """
    found: list[tuple[list[str], Tensor]] = []
    alike: dict[object, list[tuple[str, Factor]]] = {}
    for name, factor in factors:
        kind = probes.place(name), *((t.shape, t.dtype, t.device) for t in factor.held)
        alike.setdefault(kind, []).append((name, factor))
    for members in alike.values():
        names = [name for name, _ in members]
        if len(members) == 1:
            met_B = probes[names[0]].of_shares(members[0][1])
            found.append((names, torch.stack([met_B.sum(), met_B.abs().sum()])[None].double()))
            continue
        held = zip(*(factor.held for _, factor in members), strict=True)
        stacked = [torch.stack(tensors) for tensors in held]
        left_PM, right_PN = probes.sides(names)
        met_PB = (_dense if len(stacked) == 1 else _outer)(left_PM, right_PN, *stacked)
        sums = torch.stack([met_PB.sum(1), met_PB.abs().sum(1)], 1)
        found.append((names, sums.double()))
    return found


def _dense(left_PM: Tensor, right_PN: Tensor, shares_PB: Tensor) -> Tensor:
    """(P, B) of shares (P, B, M, N), the parameters' own axes."""
    P, B = shares_PB.shape[:2]
    M, N = left_PM.shape[1], right_PN.shape[1]
    S = shares_PB.reshape(P, B * M, N).to(left_PM)
    return ((S @ right_PN.unsqueeze(2)).reshape(P, B, M) @ left_PM.unsqueeze(2)).squeeze(2)


def _outer(left_PM: Tensor, right_PN: Tensor, b_PBTM: Tensor, a_PBTN: Tensor) -> Tensor:
    """(P, B) of shares b_t a_t^T, added over T."""
    left, right = (
        t.to(side).flatten(1, 2) @ side.unsqueeze(2)
        for t, side in ((b_PBTM, left_PM), (a_PBTN, right_PN))
    )
    return (left * right).reshape(b_PBTM.shape[:3]).sum(2)


def _met(left_PM: Tensor, G_PMN: Tensor, right_PN: Tensor) -> Tensor:
    return (left_PM.unsqueeze(1) @ (G_PMN @ right_PN.unsqueeze(2))).reshape(-1)
