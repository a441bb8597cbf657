"""Small parameters are scored together, to the values that they have one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.capture import _probe
from inrun.scoring import _grouped
from inrun.scoring._marks import WeightsMark
from tests.settings import flat


class Many(nn.Module):
    """Vectors, small matrices, and a parameter that is used twice."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(6) + 0.5) for _ in range(8)])
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(32)])
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        for scale in self.scales:
            x = torch.tanh(x * scale)
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        return self.out(x * self.scales[0])


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(clip, targets, options, blocks=2, **attached):
    torch.manual_seed(0)
    model = Many().double()
    x, y = torch.randn(60, 6).double(), torch.randint(3, (60,))
    half = (
        [p for p in model.parameters() if p.ndim > 1],
        [p for p in model.parameters() if p.ndim < 2],
    )
    optimizer = torch.optim.AdamW(
        [{"params": half[0]}, {"params": half[1], "lr": 3e-3, "weight_decay": 0.0}],
        lr=1e-3,
        **options,
    )
    parts = {f"part {k}": (x[40 + 5 * k :], y[40 + 5 * k :]) for k in range(targets)}
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, targets=parts),
        **flat(smoothed_steps=0, progress=False, **attached),
    )
    for step in range(4):
        for ids in (torch.arange(8) + 8 * step).chunk(blocks):
            with attribution.batch(ids):
                (loss(model, (x[ids], y[ids])) / blocks).backward()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if clip == "value":
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution


@pytest.mark.parametrize("clip", [None, "norm", "value"])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_values_and_books_are_those_of_one_by_one(clip, targets, options, monkeypatch):
    together = trained(clip, targets, options)
    monkeypatch.setattr(_grouped, "FEW", 10**9)
    monkeypatch.setattr(_probe, "SMALL", 0)
    single = trained(clip, targets, options)
    a, b = (r.values().to_pandas() for r in (together, single))
    for name in a.columns[1:]:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-12 * np.abs(b[name]).max())
    a, b = (r.ledger().to_pandas() for r in (together, single))
    for name in ("samples", "momentum", "weight_decay", "closing_loss"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-15)


def test_small_parameters_are_really_joined(monkeypatch):
    joined = []
    really = _grouped.pulled_together
    monkeypatch.setattr(
        "inrun.scoring._sums.pulled_together", lambda g: joined.append(len(g)) or really(g)
    )
    trained(None, 1, {})
    assert sum(joined) == 4 * len(list(Many().parameters()))


def test_an_edit_of_one_small_parameter_is_seen():
    parameters = list(Many().parameters())
    before = WeightsMark(parameters)
    assert before.same(WeightsMark(parameters))
    parameters[37].data[0] += 1e-6
    assert not before.same(WeightsMark(parameters))


def test_an_edit_is_seen_where_small_parameters_are_many_elements_together():
    parameters = [nn.Parameter(torch.rand(4000)) for _ in range(40)]
    for which in (0, 11, 39):
        before = WeightsMark(parameters)
        parameters[which].data[1234] += 1e-6
        assert not before.same(WeightsMark(parameters))
