"""Small parameters together: what is done a parameter costs more than its elements do.

Parameters of one rule, setting and age whose step is told from the state after it are joined into
flat tensors: one pass makes their directions. Where their shares are dense as well, one product
contracts them all. Letters: B samples of a block, K targets, n elements of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.capture import Block
from inrun.directions import Gradients, Pulled
from inrun.distributed import is_sharded
from inrun.factors import SMALL, Dense, Outer, flat
from inrun.optim import Move, as_rows, joined
from inrun.scoring._plan import ParameterPlan

FEW = 32  # parameters; fewer are not worth the joining


class Member(NamedTuple):
    """One parameter of a step that was taken."""

    name: str
    plan: ParameterPlan
    at: Gradients
    after: Move[Any, Any] | None


def groups_of(members: Sequence[Member]) -> tuple[list[list[Member]], list[Member]]:
    """(groups of small parameters, those of less than two axes first; the others)."""
    groups: dict[object, list[Member]] = {}
    rest: list[Member] = []
    for member in members:
        key = _key(member)
        if key is None:
            rest.append(member)
        else:
            groups.setdefault(key, []).append(member)
    found = [sorted(group, key=_is_matrix) for group in groups.values() if len(group) >= FEW]
    return found, rest + [m for group in groups.values() if len(group) < FEW for m in group]


def _is_matrix(member: Member) -> bool:
    return member.plan.parameter.ndim > 1


def _key(member: Member) -> object | None:
    plan, after = member.plan, member.after
    p = plan.parameter
    alone = not plan.after or p.numel() > SMALL or is_sharded(p)
    if alone or after is None or isinstance(plan.share_scale, Tensor):
        return None
    numbers = tuple(part for part in after.state if not isinstance(part, Tensor))
    kind = member.at.opening.dtype, p.dtype, p.device, plan.move.gradient.dtype
    return plan.direction.name, after.rule, plan.move.setting, numbers, kind, plan.held


def pulled_together(group: Sequence[Member]) -> Pulled:
    """Directions (K, n) of all members, one after the other, and what momentum and decay did."""
    moves = [m.after for m in group if m.after is not None]
    opening = _rows([m.at.opening for m in group])
    closing = opening
    if group[0].at.closing is not None:
        closing = _rows([m.at.closing for m in group if m.at.closing is not None])
    scales = [float(m.plan.share_scale) for m in group]
    alike = len(set(scales)) == 1
    plan = group[0].plan
    pulled = plan.direction.formed_after_step(
        joined(moves), Gradients(opening, closing), scales[0] if alike else 1.0, held=plan.held
    )
    if pulled.direction is not None and not alike:
        sizes = torch.tensor([m.plan.parameter.numel() for m in group])
        each = torch.tensor(scales, dtype=opening.dtype).repeat_interleave(sizes)
        pulled.direction.mul_(each.to(opening.device))
    return pulled


def _rows(found: list[Tensor]) -> Tensor:
    """(K, n) of tensors (K, *shape), side by side."""
    if len(found[0]) == 1:
        return flat(found).unsqueeze(0)
    return torch.cat([as_rows(t) for t in found], 1)


def directions_of(group: Sequence[Member], directions: Tensor) -> Mapping[str, Tensor]:
    """(K, *shape) of each member."""
    parts = directions.split([m.plan.parameter.numel() for m in group], 1)
    return {
        m.name: part.reshape(len(part), *m.plan.parameter.shape)
        for m, part in zip(group, parts, strict=True)
    }


def met_together(
    group: Sequence[Member], directions_Kn: Tensor, block: Block
) -> tuple[list[Tensor], Mapping[str, Tensor]]:
    """Contributions (B, K) of many parameters each; the directions (K, *shape) that are left."""
    vectors = [m for m in group if not _is_matrix(m)]
    shares_Bn = _dense_together([m.name for m in vectors], block)
    if shares_Bn is None:
        return _outer_together(directions_of(group, directions_Kn), block)
    n = shares_Bn.shape[1]
    matrices = directions_of(group[len(vectors) :], directions_Kn[:, n:])
    outer, rest = _outer_together(matrices, block)
    return [shares_Bn.to(directions_Kn) @ directions_Kn[:, :n].T, *outer], rest


def _dense_together(names: Sequence[str], block: Block) -> Tensor | None:
    """The shares of these parameters side by side, (B, n); None where one's are not dense."""
    columns = []
    for name in names:
        factors = block.factors.get(name, ())
        if len(factors) != 1 or type(factors[0]) is not Dense:
            return None
        (shares_B,) = factors[0].held
        columns.append(shares_B if shares_B.ndim == 2 else as_rows(shares_B))
    alike = {(len(c), c.device) for c in columns}
    return torch.cat(columns, 1) if len(alike) == 1 else None


def _outer_together(
    directions: Mapping[str, Tensor], block: Block
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Contributions (B, K) of small outer products, a product for each shape; what is left.

    Factors b (B, T, M) and a (B, T, N) meet directions (K, M, N).
    """
    alike: dict[object, list[str]] = {}
    rest = dict(directions)
    for name, directions_K in directions.items():
        factors = block.factors.get(name, [])
        if len(factors) == 1 and type(factors[0]) is Outer:
            held = factors[0].held
            if directions_K.ndim == 3 and sum(t.numel() for t in held) <= SMALL:
                kind = tuple((t.shape, t.dtype, t.device) for t in held)
                alike.setdefault(kind, []).append(name)
    values: list[Tensor] = []
    for names in alike.values():
        if len(names) >= FEW:
            D_PKMN = torch.stack([rest.pop(name) for name in names])
            pairs = zip(*(block.factors[name][0].held for name in names), strict=True)
            b_PBTM, a_PBTN = (torch.stack(tensors).to(D_PKMN) for tensors in pairs)
            values.append(_met(D_PKMN, b_PBTM, a_PBTN))
    return values, rest


def _met(D_PKMN: Tensor, b_PBTM: Tensor, a_PBTN: Tensor) -> Tensor:
    """Sum over P and T of b_t D_k a_t, (B, K)."""
    P, B, T, M = b_PBTM.shape
    K = D_PKMN.shape[1]
    pushed = a_PBTN.flatten(1, 2) @ D_PKMN.flatten(1, 2).mT  # (P, B * T, K * M)
    return (pushed.reshape(P, B, T, K, M) * b_PBTM.unsqueeze(3)).sum((0, 2, 4))
