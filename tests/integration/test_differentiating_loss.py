"""Loss functions that differentiate the model's outputs themselves: attacks, penalties, forces."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun

B = 6


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (60,), generator=generator)


def attacked(model, batch):
    """The loss of inputs that were moved along the sign of their gradient."""
    x = batch[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), batch[1]), x)
    return F.cross_entropy(model(x.detach() + 0.1 * gradient.sign()), batch[1])


def attached(model, loss_fn, **options):
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    utility = inrun.Utility(loss_fn, (x[20:], y[20:]), **options)
    settings = inrun.Options(progress=False)
    return inrun.attach(model, optimizer, utility, estimator="sgd", options=settings), optimizer


def test_attacks_are_scored_and_the_loss_alone_is_read_with_a_graph():
    model = network()
    twin = copy.deepcopy(model)
    attribution, optimizer = attached(model, attacked)
    x, y = data()
    with attribution.batch(range(B)):
        attacked(model, (x[:B], y[:B])).backward()
    optimizer.step()
    weights = list(twin.parameters())
    wanted = torch.autograd.grad(attacked(twin, (x[20:], y[20:])), weights)
    truth = []
    for i in range(B):
        own = torch.autograd.grad(attacked(twin, (x[[i]], y[[i]])) / B, weights)
        truth.append(0.01 * sum(float((p * q).sum()) for p, q in zip(wanted, own, strict=True)))
    values = attribution.values().sort_by("sample_id")["value"].to_numpy()
    np.testing.assert_allclose(values, truth, rtol=1e-9)
    row = attribution.ledger().to_pylist()[0]
    assert row["opening_loss"] == pytest.approx(
        float(attacked(twin, (x[20:], y[20:])).detach()), rel=1e-12
    )
    assert row["closing_loss"] == pytest.approx(
        float(attacked(model, (x[20:], y[20:])).detach()), rel=1e-12
    )


def test_random_numbers_before_a_gradient_are_those_of_every_pass():
    """The first pass without a graph fails halfway; what it drew is drawn again."""

    def noisy(model, batch):
        x = batch[0] + 0.1 * torch.randn_like(batch[0])
        return attacked(model, (x, batch[1]))

    model = network()
    attribution, optimizer = attached(model, noisy, draws=2)
    x, y = data()
    for first in (0, B):
        optimizer.zero_grad()
        with attribution.batch(range(first, first + B)):
            attacked(model, (x[first : first + B], y[first : first + B])).backward()
        optimizer.step()
    books = attribution.ledger()
    assert books["opening_loss"][1].as_py() == books["closing_loss"][0].as_py()


def test_a_penalty_on_a_gradient_is_told_and_not_scored():
    def penalised(model, batch):
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (gradient,) = torch.autograd.grad(out.logsumexp(1).sum(), x, create_graph=True)
        return F.cross_entropy(out, batch[1]) + (gradient.norm(dim=1) - 1).square().mean()

    with pytest.raises(inrun.errors.InvariantError, match="a gradient penalty"):
        attached(network(), penalised)
