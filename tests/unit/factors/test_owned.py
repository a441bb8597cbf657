"""Shares of slots that lie anywhere: their sketches are those of the shares, however they lie."""

import pytest
import torch

from inrun.factors import Indexed, Outer, by_owner

M, N, K, R = 7, 5, 2, 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def owners(slots, samples, kind):
    owner = torch.arange(slots) * samples // slots
    if kind == "mixed":
        owner = owner[torch.randperm(slots, generator=torch.Generator().manual_seed(1))]
    if kind == "one without":  # a sample that has no slot, between two that have
        owner = torch.where(owner == 1, 0, owner)
    return owner


def outer(slots, length):
    return Outer(normal(slots, length, M), normal(slots, length, N, seed=1))


def indexed(slots, length):
    index = torch.randint(M, (slots, length), generator=torch.Generator().manual_seed(2))
    return Indexed(index, normal(slots, length, N, seed=1), M)


@pytest.mark.parametrize("form", [outer, indexed])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("kind", ["in runs", "mixed", "one without"])
@pytest.mark.parametrize(("slots", "samples"), [(40, 3), (40, 20)], ids=["many each", "few each"])
def test_sketches_are_shares_in_their_bases(form, length, kind, slots, samples):
    slot, owner = form(slots, length), owners(slots, samples, kind)
    left, right = normal(K, M, R, seed=3), normal(K, N, R, seed=4)
    each = slot.materialize(torch.float64)
    shares = torch.stack([each[owner == b].sum(0) for b in range(samples)])
    expected = left.mT @ shares.unsqueeze(1) @ right
    torch.testing.assert_close(by_owner(slot, owner, samples).sketch(left, right), expected)
