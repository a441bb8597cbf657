"""One contraction object may be given to several runs: each learns by itself."""

import torch
from torch import nn

import inrun
from inrun.factors import LowRankContraction


def values(width, contraction):
    torch.manual_seed(0)
    x, y = torch.randn(40, 96).double(), torch.randint(3, (40,))
    model = nn.Sequential(nn.Linear(96, width), nn.Tanh(), nn.Linear(width, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters())
    loss_fn = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    utility = inrun.Utility(loss_fn, (x[30:], y[30:]))
    with inrun.attach(
        model,
        optimizer,
        utility,
        options=inrun.Options(contraction=contraction, smoothed_steps=0, progress=False),
    ) as attribution:
        for ids in torch.arange(30).split(15):
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
    return attribution.values()


def test_a_contraction_that_was_given_before_is_as_new(monkeypatch):
    monkeypatch.setattr("inrun.factors.cost.low_rank_is_cheaper", lambda *_: True)
    given = LowRankContraction(rank=2)
    first = values(80, given)
    values(50, given)
    assert values(80, given) == first
