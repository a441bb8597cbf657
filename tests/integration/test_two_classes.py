"""Two classes: gradients of the head sum to zero over them, and nothing may hide in that."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunError
from tests.settings import flat

MODELS = 32


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def two_classes(seed):
    torch.manual_seed(seed)
    width = 3 + seed % 4
    if seed % 3 == 0:
        model = nn.Linear(width, 2, bias=seed % 2 == 0)
    elif seed % 3 == 1:
        model = nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 2))
    else:
        model = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
    x, y = torch.randn(24, width), torch.randint(2, (24,))
    return model, (x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])


def attach(model, validation, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(loss_fn, validation)
    return optimizer, inrun.attach(model, optimizer, utility, **flat(progress=False, **options))


def refused(seed, outside):
    model, batch, other, validation = two_classes(seed)
    optimizer, attribution = attach(model, validation)
    try:
        if outside == "before":
            loss_fn(model, other).backward()
        with attribution.batch(range(8)):
            loss_fn(model, batch).backward()
        if outside == "after":
            loss_fn(model, other).backward()
        optimizer.step()
    except InRunError:
        return True
    return False


@pytest.mark.parametrize("outside", ["before", "after"])
def test_a_backward_pass_outside_every_block_is_refused_in_every_model(outside):
    assert [seed for seed in range(MODELS) if not refused(seed, outside)] == []


def values(seed, capture, change):
    model, batch, other, validation = two_classes(seed)
    optimizer, attribution = attach(model, validation, capture=capture)
    for step, part in enumerate((batch, other, batch)):
        with attribution.batch(range(8 * step, 8 * step + 8)):
            loss = loss_fn(model, part)
            (-loss if change == "loss" else loss).backward()
        if change == "gradients":
            for p in model.parameters():
                p.grad.neg_()
        optimizer.step()
        optimizer.zero_grad()
    return attribution.values()["value"].to_numpy()


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_negated_gradients_are_those_of_the_negated_loss(capture):
    for seed in range(MODELS):
        found = values(seed, capture, "gradients")
        expected = values(seed, capture, "loss")
        tiny = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tiny)
