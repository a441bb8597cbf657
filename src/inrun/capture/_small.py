"""The invariant's sums of many small parameters, a few operations for all of one shape.

Letters: P parameters of one shape (M, N), B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inrun.capture._probe import Probe, Probes
from inrun.factors import Dense, Factor
from inrun.shards import is_sharded

SMALL = 4096  # elements; above it the elements cost more than the calls


def is_small(parameter: Tensor, factor: Factor | None = None) -> bool:
    """Whether a parameter, or its dense shares, are better met together with others'."""
    plain = parameter.numel() <= SMALL and not is_sharded(parameter)
    return plain and (factor is None or type(factor) is Dense)


def of_gradients(probes: Probes, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """<r, gradient> and the gradient's norm, (2,) float64, of each small one."""
    found: dict[str, Tensor] = {}
    alike: dict[object, list[str]] = {}
    for name, g in gradients.items():
        alike.setdefault((g.shape, g.dtype, g.device), []).append(name)
    for names in alike.values():
        left_PM, right_PN = _sides([probes[name] for name in names])
        P, M = left_PM.shape
        N = right_PN.shape[1]
        G_PMN = torch.stack([gradients[name].detach() for name in names]).reshape(P, M, N)
        along_P = _met(left_PM, G_PMN.to(left_PM.dtype), right_PN)
        wide = None if G_PMN.device.type == "mps" else torch.float64
        norms_P = torch.linalg.vector_norm(G_PMN, dim=(1, 2), dtype=wide)
        rows = torch.stack([along_P.double(), norms_P.double()], 1)
        found |= zip(names, rows.unbind(), strict=True)
    return found


def of_shares(
    probes: Probes, factors: Sequence[tuple[str, Factor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The sums of <r, share_b> and of their sizes, of each small parameter's dense shares."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    alike: dict[object, list[tuple[str, Tensor]]] = {}
    for name, factor in factors:
        (shares_B,) = factor.held
        alike.setdefault((shares_B.shape, shares_B.dtype, shares_B.device), []).append(
            (name, shares_B)
        )
    for members in alike.values():
        left_PM, right_PN = _sides([probes[name] for name, _ in members])
        shares_PB = torch.stack([shares for _, shares in members])
        P, B = shares_PB.shape[:2]
        M, N = left_PM.shape[1], right_PN.shape[1]
        S = shares_PB.reshape(P, B * M, N).to(left_PM)
        met_PB = (S @ right_PN.unsqueeze(2)).reshape(P, B, M) @ left_PM.unsqueeze(2)
        sums = met_PB.sum((1, 2)).unbind(), met_PB.abs().sum((1, 2)).unbind()
        for (name, _), total, size in zip(members, *sums, strict=True):
            before = found.get(name)
            found[name] = (total, size) if before is None else (before[0] + total, before[1] + size)
    return found


def _sides(probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """(P, M) and (P, N)."""
    lefts, rights = zip(*(probe.sides for probe in probes), strict=True)
    return torch.stack(lefts), torch.stack(rights)


def _met(left_PM: Tensor, G_PMN: Tensor, right_PN: Tensor) -> Tensor:
    return (left_PM.unsqueeze(1) @ (G_PMN @ right_PN.unsqueeze(2))).reshape(-1)
