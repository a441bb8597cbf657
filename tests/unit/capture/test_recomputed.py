"""Inputs of layers under a checkpoint come from its recomputation, and are not held until then."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from inrun.capture import Hold

B, T, N = 4, 5, 8


class Twice(torch.autograd.Function):
    """An operation whose inside is hidden."""

    @staticmethod
    def forward(ctx, x):
        return (x + x).clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(N), nn.Linear(N, 2 * N), nn.Linear(2 * N, N)
        self.gain, self.added = nn.Parameter(torch.randn(N)), nn.Parameter(torch.randn(N))

    def forward(self, x):
        h = torch.tanh(self.up(self.norm(x)))
        return x + self.gain * self.down(h) + self.added


class Hidden(Layer):
    def forward(self, x):
        return super().forward(Twice.apply(x))


class Inner(Layer):
    """A region within a region."""

    def forward(self, x):
        return super().forward(checkpoint(super().forward, x, use_reentrant=False))


class Halves(Layer):
    """Weights that are cast inside."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class Biased(Layer):
    """The last matrix is frozen and its bias is not: nothing of it is saved."""

    def __init__(self):
        super().__init__()
        self.down.weight.requires_grad_(False)


class Changing(Layer):
    """Does something else when it comes again."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x if self.calls == 1 else x + 0)


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers, self.checkpoints = nn.ModuleList(kind() for _ in range(3)), True
        self.inside = []

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints else layer(x)
        return x


def built(kind):
    torch.manual_seed(0)
    model = Model(kind)
    return model if kind is Halves else model.double()


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def shares(model, backward, x):
    model.zero_grad()
    capture = Hold(model, trained(model))
    with capture.block(B) as block:
        backward(model(x))
    capture.finish()
    return {n: sum(f.materialize(torch.float64) for f in fs) for n, fs in block.factors.items()}


def once(out):
    out.square().sum().backward()


def twice(out):
    out.square().sum().backward(retain_graph=True)
    out.sin().sum().backward()


@pytest.mark.parametrize("backward", [once, twice])
@pytest.mark.parametrize("kind", [Layer, Hidden, Inner, Halves, Biased])
def test_shares_are_those_without_checkpoints(kind, backward):
    model = built(kind)
    x = torch.randn(B, T, N, dtype=model.layers[0].gain.dtype)
    found = shares(model, backward, x)
    model.checkpoints = False
    expected = shares(model, backward, x)
    assert set(found) == set(expected) == set(trained(model))
    for name, share in expected.items():
        torch.testing.assert_close(found[name], share)


def test_nothing_inside_is_held_until_the_backward_pass():
    model, seen = built(Layer), []

    def see(_, __, out):
        seen.append(StorageWeakRef(out.untyped_storage()))

    for layer in model.layers:
        layer.norm.register_forward_hook(see)
    with Hold(model, trained(model)).block(B):
        out = model(torch.randn(B, T, N).double())
        assert len(seen) == 3
        assert all(ref.expired() for ref in seen)
        out.square().sum().backward()


def test_a_region_that_does_something_else_again_is_a_gap():
    model = built(Changing)
    capture = Hold(model, trained(model))
    with capture.block(B) as block:
        once(model(torch.randn(B, T, N).double()))
    capture.finish()
    waiting = {f"layers.{i}.{n}" for i in range(3) for n in ("norm.weight", "up.weight", "gain")}
    assert not waiting & set(block.factors)
    assert waiting <= set(capture.check.gaps)
    assert "layers.0.added" in block.factors
