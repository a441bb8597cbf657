"""The tolerance follows what was computed: models in double precision that compute in less inside,
and losses so small that squares of their gradients are nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InvariantError
from tests.settings import flat


class Norm(nn.Module):
    """As Gemma's and Mamba's: in single precision, whatever the model's is."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1.0 + self.weight.float())).type_as(x)


class Inside(nn.Module):
    """A matrix that is met in another precision than its own."""

    def __init__(self, width, dtype):
        super().__init__()
        self.inner, self.dtype = nn.Linear(width, width), dtype

    def forward(self, x):
        w, b = (t.to(self.dtype) for t in (self.inner.weight, self.inner.bias))
        return F.linear(x.to(self.dtype), w, b).type_as(x)


LAYERS = {
    "a norm": lambda: Norm(8),
    "a matrix": lambda: Inside(8, torch.float32),
    "a matrix in half": lambda: Inside(8, torch.bfloat16),
}


def network(layer, dtype=torch.float64):
    torch.manual_seed(0)
    middle = [] if layer is None else [LAYERS[layer]()]
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def trained(model, scale=1.0, lr=1e-2, blocks=1, broken=None, **options):
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(64, 6, dtype=dtype), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr / scale)

    def loss(m, b):
        return F.cross_entropy(m(b[0]), b[1]) * scale

    attribution = inrun.attach(
        model, optimizer, inrun.Utility(loss, (x[32:], y[32:])), **flat(progress=False, **options)
    )
    for step in range(4):
        for ids in (torch.arange(8) + 8 * step).chunk(blocks):
            with attribution.batch(ids):
                (loss(model, (x[ids], y[ids])) / blocks).backward()
                if broken:
                    broken(model)
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution


@pytest.mark.parametrize("options", [{}, {"capture": "stream"}, {"blocks": 2}], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_double_model_that_computes_in_less_inside_is_scored(layer, options):
    attribution = trained(network(layer), **options)
    assert attribution.ledger().num_rows == 4
    assert attribution.covered == pytest.approx(1.0)


def double(model):
    with torch.no_grad():
        model[0].weight.grad *= 1 + 1e-6


@pytest.mark.parametrize("layer", [None, *LAYERS])
def test_what_is_computed_in_double_precision_is_still_held_to_it(layer):
    if layer == "a matrix in half":
        pytest.skip("of half precision every sum is held to two digits, wherever it took part")
    with pytest.raises(InvariantError, match=r"0\.weight"):
        trained(network(layer), broken=double)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-15, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [None, "a norm"])
def test_a_tiny_or_a_huge_loss_has_the_same_values_in_its_own_units(scale, dtype, layer):
    torch.manual_seed(3)
    plain = trained(network(layer, dtype))
    torch.manual_seed(3)
    scaled = trained(network(layer, dtype), scale, self_test=False)
    a, b = (r.values()["value"].to_numpy() for r in (plain, scaled))
    np.testing.assert_allclose(b / scale, a, rtol=2e-3, atol=1e-4 * np.abs(a).max())


def test_a_recorded_run_that_computes_in_less_inside_is_played_again():
    model = network("a norm")
    x, y = torch.randn(40, 6).double(), torch.randint(3, (40,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def losses(m, b):
        return F.cross_entropy(m(b[0]), b[1], reduction="none") / 4

    fetch = lambda ids: (x[list(ids)], y[list(ids)])  # noqa: E731
    recorder = inrun.record(model, optimizer, losses, fetch)
    for step in range(5):
        ids = range(4 * step, 4 * step + 4)
        with recorder.batch(ids):
            losses(model, fetch(ids)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    run = recorder.finish()
    run.check()
    assert not run.replica.double
    utility = inrun.Utility(lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x[30:], y[30:]))
    assert inrun.lookahead(run, utility).values().num_rows == 20
