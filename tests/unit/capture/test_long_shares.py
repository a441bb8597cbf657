"""Adapters and gains over long sequences: the shares themselves are kept, not activations."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import inrun.capture._uses
from inrun.capture import Hold

B, T, N, R = 3, 400, 24, 2


class Adapted(nn.Module):
    """A frozen matrix, an adapter beside it, and a gain."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(N, N, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(N, R, bias=False), nn.Linear(R, N, bias=False)
        self.norm = nn.LayerNorm(N)
        self.seen = []

    def forward(self, x):
        h = self.norm(torch.tanh(x))
        self.seen.append(StorageWeakRef(h.untyped_storage()))
        return self.frozen(h) + 2 * self.up(self.down(h))


@pytest.fixture(name="model")
def _model():
    torch.manual_seed(0)
    return Adapted().double()


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def one_by_one(model, x, loss):
    """Each sample's gradient, by plain autograd."""
    names = trained(model)
    rows = [
        torch.autograd.grad(loss(model(x[b : b + 1])), list(names.values())) for b in range(len(x))
    ]
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def kept(block):
    return {
        name: sum(f.materialize(torch.float64) for f in factors)
        for name, factors in block.factors.items()
    }


def squares(out):
    return out.square().sum()


def test_shares_are_those_of_each_sample_and_activations_are_free(model):
    x = torch.randn(B, T, N).double()
    expected = one_by_one(model, x, squares)
    model.seen.clear()
    with Hold(model, trained(model)).block(B) as block:
        squares(model(x)).backward()
    assert model.seen[0].expired()
    found = kept(block)
    assert set(found) == set(expected)
    for name, shares in expected.items():
        torch.testing.assert_close(found[name], shares)


def test_short_sequences_are_kept_as_they_are(model):
    with Hold(model, trained(model)).block(B) as block:
        squares(model(torch.randn(B, 3, N).double())).backward()
    assert not model.seen[0].expired()
    assert block.factors


@pytest.mark.parametrize("by_name", [True, False])
def test_a_graph_that_is_passed_twice_is_taken_twice(model, by_name):
    x = torch.randn(B, T, N).double()
    a, b = one_by_one(model, x, squares), one_by_one(model, x, torch.sum)
    with Hold(model, trained(model)).block(B) as block:
        out = model(x)
        if by_name:
            squares(out).backward(retain_graph=True)
        else:
            torch.autograd.backward(squares(out), None, True)
        out.sum().backward()
    for name, shares in kept(block).items():
        torch.testing.assert_close(shares, a[name] + b[name])


def test_values_are_those_of_held_activations(model, monkeypatch):
    x = torch.randn(B, T, N).double()
    with Hold(model, trained(model)).block(B) as block:
        squares(model(x)).backward()
    monkeypatch.setattr(inrun.capture._uses, "LONG", 10**9)
    model.zero_grad()
    with Hold(model, trained(model)).block(B) as held:
        squares(model(x)).backward()
    for name, factors in held.factors.items():
        direction = torch.randn(1, *trained(model)[name].shape).double()
        torch.testing.assert_close(
            sum(f.contract(direction) for f in factors),
            sum(f.contract(direction) for f in block.factors[name]),
        )
