"""Batch normalization in training mode: scored by what passes through each sample's own slots."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning
from tests.settings import flat

ROWS, LR = 8, 0.1
pytestmark = [
    pytest.mark.filterwarnings("ignore:Samples interact"),
    pytest.mark.filterwarnings("ignore:The shares of"),  # of a bias in front, with capture='stream'
]


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Normalized(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6, **options)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


def setting(**options):
    torch.manual_seed(0)
    model = Normalized(**options).double()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    x, y = torch.randn(40, 5).double(), torch.randint(3, (40,))
    return model, (x[:24], y[:24]), (x[24:], y[24:])


def attach(model, validation, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=LR)
    utility = inrun.Utility(loss_fn, validation)
    return optimizer, inrun.attach(model, optimizer, utility, **flat(progress=False, **options))


def evaluated(model, batch):
    flag = model.training
    model.eval()
    loss = loss_fn(model, batch)
    model.train(flag)
    return loss


def shares(model, batch):
    """By hand: of each layer, what its output's gradient at a sample's own row makes of its input.

    The gradient at a row has the other rows' part in it, through the batch's mean and variance.
    """
    kept = {}

    def keep(name):
        def hook(module, inputs, out):
            kept[name] = inputs[0], out

        return hook

    handles = [
        layer.register_forward_hook(keep(name))
        for name, layer in (("first", model.first), ("norm", model.norm), ("last", model.last))
    ]
    statistics = [b.clone() for b in model.buffers()]
    loss = loss_fn(model, batch)
    for handle in handles:
        handle.remove()
    outs = torch.autograd.grad(loss, [kept[n][1] for n in kept])
    for buffer, before in zip(model.buffers(), statistics, strict=True):
        buffer.copy_(before)
    found = {}
    for (name, (inputs, _)), b in zip(kept.items(), outs, strict=True):
        a = inputs.detach()
        if name == "norm":
            a = (a - a.mean(0)) / (a.var(0, unbiased=False) + model.norm.eps).sqrt()
            found[f"{name}.weight"] = b * a
        else:
            found[f"{name}.weight"] = torch.einsum("bo,bi->boi", b, a)
        found[f"{name}.bias"] = b
    return found


def test_shares_are_what_passes_through_the_samples_own_rows():
    model, data, validation = setting()
    optimizer, attribution = attach(model, validation, estimator="sgd")
    batch = data[0][:ROWS], data[1][:ROWS]
    expected_shares = shares(model, batch)
    with attribution.batch(range(ROWS)):
        loss_fn(model, batch).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(expected_shares[name].sum(0), p.grad)
    model.eval()
    parameters = dict(model.named_parameters())
    along = torch.autograd.grad(loss_fn(model, validation), list(parameters.values()))
    model.train()
    expected = sum(
        LR * (expected_shares[name] * g).flatten(1).sum(1)
        for name, g in zip(parameters, along, strict=True)
    )
    optimizer.step()
    found = attribution.values()["value"].to_numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)
    assert {r["status"] for r in attribution.coverage().to_pylist()} == {"captured"}


@pytest.mark.parametrize("capture", ["hold", "offload", "stream"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_what_running_statistics_change_is_the_entry_other(capture, blocks):
    model, data, validation = setting()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    _, attribution = attach(model, validation, optimizer, capture=capture)
    closing = None
    for step in range(5):
        ids = torch.randperm(24)[:ROWS]
        for part in ids.chunk(blocks):
            with attribution.batch(part):
                (loss_fn(model, (data[0][part], data[1][part])) / blocks).backward()
        opening = float(evaluated(model, validation))
        optimizer.step()
        optimizer.zero_grad()
        row = attribution.ledger().to_pylist()[-1]
        assert row["opening_loss"] - row["other"] == pytest.approx(opening, rel=1e-9)
        if step:
            assert row["opening_loss"] == pytest.approx(closing, rel=1e-9)
            assert row["other"] != 0
        closing = row["closing_loss"]
        assert closing == pytest.approx(float(evaluated(model, validation)), rel=1e-9)
        parts = ("samples", "momentum", "weight_decay", "unattributed", "other", "residual")
        assert sum(row[n] for n in parts) == pytest.approx(
            row["opening_loss"] - row["closing_loss"], abs=1e-12
        )
    found = attribution.balance()
    assert found["other"] != 0
    if capture != "stream":  # which forms directions before all of the gradient is there
        assert attribution.residual_share < 0.05


def test_one_forward_pass_a_step_is_all_that_it_costs():
    model, data, validation = setting()
    calls = []

    def counted(m, batch):
        calls.append(torch.is_grad_enabled())
        return loss_fn(m, batch)

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(counted, validation), options=inrun.Options(progress=False)
    )
    for step in range(4):
        with attribution.batch(range(ROWS)):
            loss_fn(model, (data[0][:ROWS], data[1][:ROWS])).backward()
        if step:
            calls.clear()
        optimizer.step()
        optimizer.zero_grad()
    assert sorted(calls) == [False, True]


def test_statistics_that_rest_cost_nothing():
    model, data, validation = setting()
    model.norm.eval()
    calls = []

    def counted(m, batch):
        calls.append(1)
        return loss_fn(m, batch)

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(counted, validation), options=inrun.Options(progress=False)
    )
    for step in range(3):
        with attribution.batch(range(ROWS)):
            loss_fn(model, (data[0][:ROWS], data[1][:ROWS])).backward()
        if step:
            calls.clear()
        optimizer.step()
        optimizer.zero_grad()
    assert len(calls) == 1
    assert not attribution.ledger()["other"].to_numpy().any()


@pytest.mark.parametrize("tracked", [True, False])
def test_that_samples_interact_is_said_once(tracked):
    model, data, validation = setting(track_running_stats=tracked)
    optimizer, attribution = attach(model, validation, self_test=False)
    said = []
    for _ in range(3):
        with pytest.warns(InRunWarning) if not said else _nothing() as seen:
            with attribution.batch(range(ROWS)):
                loss_fn(model, (data[0][:ROWS], data[1][:ROWS])).backward()
        said += [str(w.message) for w in seen or ()]
        optimizer.step()
        optimizer.zero_grad()
    assert len(said) == 1
    assert "batch_norm" in said[0]


class _nothing:  # noqa: N801
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


def test_training_is_bit_for_bit_the_same():
    weights = []
    for attached in (False, True):
        model, data, validation = setting()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = attach(model, validation, optimizer)[1] if attached else None
        for _ in range(3):
            loss = lambda m=model, d=data: loss_fn(m, (d[0][:ROWS], d[1][:ROWS]))  # noqa: E731
            if attribution is None:
                loss().backward()
            else:
                with attribution.batch(range(ROWS)):
                    loss().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([t.detach().clone() for t in model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def with_bias(dtype, **how):
    """Values of 25 steps of a network with a bias in front of BatchNorm, whose shares cancel."""
    torch.manual_seed(0)
    layers = nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
    model = nn.Sequential(*layers).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(200, 20, dtype=dtype), torch.randint(3, (200,))
    utility = inrun.Utility(loss_fn, (x[150:], y[150:]))
    attribution = inrun.attach(model, optimizer, utility, **flat(progress=False, **how))
    for _ in range(25):
        ids = torch.randperm(150)[:16]
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return attribution.values()["value"].to_numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_rounding_beside_its_shares_magnifies_no_value(dtype):
    found = with_bias(dtype)
    smoothed = with_bias(dtype, smoothed_steps=1000)  # every parameter, in every step
    assert np.corrcoef(found, smoothed)[0, 1] > 0.99
    assert np.abs(found).max() < 2 * np.abs(smoothed).max()


def test_where_nothing_is_smoothed_it_is_told():
    with pytest.warns(InRunWarning, match="0.bias first, cancel to a gradient"):
        with_bias(torch.float64, smoothed_steps=0)
