"""Optimizers at the edge of their arguments: nothing that is booked is ever NaN."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import inrun
from inrun.errors import InRunWarning, MisuseError

ENTRIES = ("samples", "momentum", "weight_decay", "unattributed", "other", "residual")


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


EDGES = {
    "AdamW, eps 0": (optim.AdamW, {"eps": 0.0}),
    "AdamW, betas 0": (optim.AdamW, {"betas": (0.0, 0.0)}),
    "AdamW, lr 0": (optim.AdamW, {"lr": 0.0}),
    "AdamW, decay eats all": (optim.AdamW, {"weight_decay": 100.0}),
    "AdamW, huge decay": (optim.AdamW, {"weight_decay": 60.0}),
    "Adam, eps 0 and decay": (optim.Adam, {"eps": 0.0, "weight_decay": 0.1}),
    "NAdam, eps 0": (optim.NAdam, {"eps": 0.0}),
    "Adamax, eps 0": (optim.Adamax, {"eps": 0.0}),
    "RMSprop, eps 0": (optim.RMSprop, {"eps": 0.0}),
    "Adagrad, eps 0": (optim.Adagrad, {"eps": 0.0}),
    "SGD, lr 0": (optim.SGD, {"lr": 0.0, "momentum": 0.9}),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("smoothed", [0, 10])
def test_values_and_books_are_finite_and_close(name, smoothed):
    kind, options = EDGES[name]
    torch.manual_seed(0)
    x, y = torch.randn(60, 5).double(), torch.randint(3, (60,))
    model = nn.Linear(5, 3).double()
    optimizer = kind(model.parameters(), **{"lr": 1e-2, **options})
    utility = inrun.Utility(loss_fn, (x[40:], y[40:]))
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(progress=False, smoothed_steps=smoothed)
    )
    for step in range(5):
        ids = torch.arange(8) + 8 * step
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(attribution.values()["value"].to_numpy()).all()
    for row in attribution.ledger().to_pylist():
        assert all(math.isfinite(row[name]) for name in ENTRIES)
        assert sum(row[name] for name in ENTRIES) == pytest.approx(
            row["opening_loss"] - row["closing_loss"], abs=1e-12
        )
        assert row["note"] == ""
    assert "decay" in name or attribution.residual_share < 0.1


EXTREMES = {
    "AdamW without eps": (torch.optim.AdamW, {"eps": 0.0}),
    "Adam without eps, with amsgrad": (torch.optim.Adam, {"eps": 0.0, "amsgrad": True}),
    "Adam without eps, with decay": (torch.optim.Adam, {"eps": 0.0, "weight_decay": 0.1}),
    "Adam without any memory": (torch.optim.Adam, {"betas": (0.0, 0.0)}),
    "Adam without memory of gradients": (torch.optim.Adam, {"betas": (0.0, 0.999)}),
    "AdamW whose decay takes all": (torch.optim.AdamW, {"weight_decay": 1000.0}),
    "Adamax without eps": (torch.optim.Adamax, {"eps": 0.0}),
    "NAdam without eps": (torch.optim.NAdam, {"eps": 0.0}),
    "RAdam without eps": (torch.optim.RAdam, {"eps": 0.0, "betas": (0.9, 0.9)}),
    "Adagrad without eps": (torch.optim.Adagrad, {"eps": 0.0}),
    "RMSprop without eps": (torch.optim.RMSprop, {"eps": 0.0}),
    "RMSprop without eps, with momentum": (torch.optim.RMSprop, {"eps": 0.0, "momentum": 0.9}),
    "Adadelta without eps": (torch.optim.Adadelta, {"eps": 0.0}),
    "SGD that dampens all": (torch.optim.SGD, {"momentum": 0.9, "dampening": 1.0}),
    "no learning rate": (torch.optim.AdamW, {"lr": 0.0, "eps": 0.0}),
}


@pytest.mark.parametrize("smoothed", [0, 10])
@pytest.mark.parametrize("name", EXTREMES)
def test_no_value_is_lost_at_the_edge_and_books_close(name, smoothed):
    torch.manual_seed(0)
    kind, options = EXTREMES[name]
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randint(3, (60,))
    model = nn.Linear(5, 3, dtype=torch.float64)
    optimizer = kind(model.parameters(), **{"lr": 1e-3, **options})
    utility = inrun.Utility(loss_fn, (x[40:], y[40:]))
    attribution = inrun.attach(
        model, optimizer, utility, options=inrun.Options(smoothed_steps=smoothed, progress=False)
    )
    for step in range(5):
        ids = torch.arange(8) + 8 * step
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    assert not any(math.isnan(value) for value in attribution.values()["value"].to_pylist())
    for row in attribution.ledger().to_pylist():
        entries = [row[k] for k in ("samples", "momentum", "weight_decay")]
        assert all(math.isfinite(entry) for entry in entries)
        assert abs(row["residual"]) <= 5e-2 * sum(map(abs, entries)) + 1e-12


def rooted(model, batch):
    """A loss that is finite where its gradient is not."""
    d = model(batch[0])[:, 0] - batch[1]
    return torch.where(d == 0, torch.zeros_like(d), (d * d).sqrt()).mean()


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_a_validation_gradient_that_is_not_finite_is_refused_and_not_booked(capture, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, v, y = torch.randn(8, 3), torch.randn(5, 3), torch.randn(5)
    y[0] = model(v)[0, 0].item()
    utility = inrun.Utility(rooted, (v, y))
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        store=tmp_path / "run",
        options=inrun.Options(progress=False, capture=capture, self_test=False),
    )
    said = []
    for _ in range(3):
        try:
            with attribution.batch(range(8)):
                rooted(model, (x, torch.zeros(8))).backward()
            optimizer.step()
        except MisuseError as error:
            said.append(str(error))
            y[0] += 1.0  # the way out that the message names
        optimizer.zero_grad()
    assert len(said) == 1
    assert "weight" in said[0]
    assert "finite and its gradient is not" in said[0]
    attribution.detach()
    assert np.isfinite(attribution.values()["value"].to_numpy()).all()
    assert attribution.ledger().num_rows >= 1


def test_an_attribution_that_nobody_holds_is_told_of():
    def attached():
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = torch.randn(6, 3), torch.randint(2, (6,))
        return inrun.attach(
            model, optimizer, inrun.Utility(loss_fn, data), options=inrun.Options(progress=False)
        )

    with pytest.warns(InRunWarning, match="nobody holds"):
        attached()
    attached().detach()  # who detaches knows
