"""Whole steps at the edge of an optimizer's arguments: no value is lost, and the books close."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inrun

EDGES = {
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


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("smoothed", [0, 10])
@pytest.mark.parametrize("name", EDGES)
def test_no_value_is_lost_at_the_edge_and_books_close(name, smoothed):
    torch.manual_seed(0)
    kind, options = EDGES[name]
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randint(3, (60,))
    model = nn.Linear(5, 3, dtype=torch.float64)
    optimizer = kind(model.parameters(), **{"lr": 1e-3, **options})
    utility = inrun.Utility(loss, (x[40:], y[40:]))
    attribution = inrun.attach(model, optimizer, utility, smoothed_steps=smoothed, progress=False)
    for step in range(5):
        ids = torch.arange(8) + 8 * step
        with attribution.batch(ids):
            loss(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    assert not any(math.isnan(value) for value in attribution.values()["value"].to_pylist())
    for row in attribution.ledger().to_pylist():
        entries = [row[k] for k in ("samples", "momentum", "weight_decay")]
        assert all(math.isfinite(entry) for entry in entries)
        assert abs(row["residual"]) <= 5e-2 * sum(map(abs, entries)) + 1e-12
