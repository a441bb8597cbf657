"""Experts' shares are those of each expert's own rows, however many come to it."""

import pytest
import torch

from inrun.factors import Dense, GroupedOuter, Outer, Owned

B, T, M, N, E = 3, 4, 5, 2, 4
GROUPS = {
    "none, one, as many as samples": [1, 2, 3, 3, 3, 2, 3, 3, 3, 3, 2, 3],
    "all to one": [2] * 12,
    "some to nobody": [0, 4, 1, 4, 3, 0, 2, 2, 4, 4, 1, 0],
}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


SIDES = normal(2, E, 3, seed=5), normal(2, M * N, 4, seed=6)  # two directions' bases


STACK = normal(2, E, M, 2, seed=7), normal(2, E, N, 2, seed=8)  # of each expert its own


def stacked(shares):
    return STACK[0].mT @ shares.unsqueeze(1) @ STACK[1]


def sketched(shares):
    return SIDES[0].mT @ shares.flatten(2).unsqueeze(1) @ SIDES[1]


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_shares_are_those_of_each_groups_rows(groups):
    group = torch.tensor(groups).reshape(B, T)
    left, right = normal(B, T, M), normal(B, T, N, seed=1)
    factor = GroupedOuter(left, right, group, E)
    expected = torch.stack(
        [Outer(left * (group == e)[..., None], right).materialize(torch.float64) for e in range(E)],
        1,
    )
    assert factor.shape == (E, M, N)
    torch.testing.assert_close(factor.materialize(torch.float64), expected)
    torch.testing.assert_close(factor.total(torch.float64), expected.sum(0))
    order = torch.tensor([2, 0, 0])
    torch.testing.assert_close(factor.select(order).materialize(torch.float64), expected[order])
    for K in (0, 1, 3):
        Q = normal(K, E, M, N, seed=2)
        met = torch.einsum("bemn,kemn->bk", expected, Q)
        torch.testing.assert_close(factor.mapped(torch.clone).contract(Q), met)
    one, rest = normal(E, seed=3), normal(M, N, seed=4)
    met = torch.einsum("bemn,e,mn->b", expected, one, rest)
    torch.testing.assert_close(factor.contract_rank_one(one, rest), met)
    torch.testing.assert_close(factor.sketch(*SIDES), sketched(expected))
    torch.testing.assert_close(factor.sketch_stack(*STACK), stacked(expected))
    assert factor.is_stack
    torch.testing.assert_close(Dense(expected).sketch_stack(*STACK), stacked(expected))


def test_rows_in_the_experts_order_are_summed_by_owner():
    group, owner = torch.tensor([0, 0, 1, 3, 3]), torch.tensor([2, 0, 2, 1, 2])
    left, right = normal(5, 1, M), normal(5, 1, N, seed=1)
    factor = Owned(GroupedOuter(left, right, group[:, None], E), owner, B)
    expected = torch.zeros(B, E, M, N, dtype=torch.float64)
    for x, y, e, b in zip(left[:, 0], right[:, 0], group, owner, strict=True):
        expected[b, e] += torch.outer(x, y)
    torch.testing.assert_close(factor.materialize(torch.float64), expected)
    Q = normal(2, E, M, N, seed=2)
    torch.testing.assert_close(factor.contract(Q), torch.einsum("bemn,kemn->bk", expected, Q))
    one, rest = normal(E, seed=3), normal(M, N, seed=4)
    met = torch.einsum("bemn,e,mn->b", expected, one, rest)
    torch.testing.assert_close(factor.contract_rank_one(one, rest), met)
    torch.testing.assert_close(factor.sketch(*SIDES), sketched(expected))
    torch.testing.assert_close(factor.sketch_stack(*STACK), stacked(expected))
    assert factor.is_stack
    torch.testing.assert_close(Dense(expected).sketch_stack(*STACK), stacked(expected))
