"""Owners checked on training batches: what is wrong is found, what is right raises no alarm."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning
from inrun.owners import Map, _registry
from inrun.owners._registry import Registered

B = 6


class Mix(torch.autograd.Function):
    """Mixes rows where no mode sees it."""

    @staticmethod
    def forward(ctx, x):
        a = x.detach().numpy()
        return torch.from_numpy(a + 0.5 * a[::-1].copy())

    @staticmethod
    def backward(ctx, g):
        a = g.numpy()
        return torch.from_numpy(a + 0.5 * a[::-1].copy())


class Net(nn.Module):
    """Two layers, and something in between."""

    def __init__(self, between=lambda h: h):
        super().__init__()
        self.a, self.h = nn.Linear(4, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.h(self.between(torch.tanh(self.a(x))))


class Sorted(Net):
    def forward(self, x):
        order = x[:, 0].argsort()
        return self.h(torch.tanh(self.a(x[order]))[order.argsort()])


class Experts(Net):
    """Rows routed to one of two layers by index."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == k).nonzero().flatten()
            out.index_add_(0, rows, expert(h[rows]))
        return self.h(out)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 6, batch_first=True)
        self.h = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.h(self.lstm(self.embedding(tokens))[0][:, -1])


def reverse(h):
    return h.flip(0)


def believed(monkeypatch, name, rule):
    """A wrong rule for an operation, as a mistake in it would be."""
    monkeypatch.setitem(_registry._BY_NAME, name, Registered("wrong", rule, False))


def rowwise(op):
    return op.every(op.first)


def rolled(op):
    m = op.first
    return op.every(Map(m.codes.roll(1, 0)) if m.shape[0] > 1 else m)


def exchanged_pair(op):
    m = op.first
    places = torch.tensor([1, 0, *range(2, B)])
    return op.every(Map(m.codes[places]) if m.shape[0] == B else m)


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 4, generator=generator).double()
    return x, torch.randint(3, (40,), generator=generator)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(build, batch, *, steps=3, attach=True, loss=loss_fn, seed=0, checks=True, **options):
    """(model, attribution, warnings) after a few steps."""
    torch.manual_seed(seed)
    model = build().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attribution = None
    if attach:
        held_out = tuple(t[20:] for t in batch)
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(loss, held_out), progress=False, **options
        )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(steps):
            rows = [(step * B + i) % 20 for i in range(B)]
            own = tuple(t[rows] for t in batch)
            if attribution is None:
                loss(model, own).backward()
            else:
                with attribution.batch(rows):
                    loss(model, own).backward()
            optimizer.step()
            optimizer.zero_grad()
    said = [str(w.message) for w in seen if issubclass(w.category, InRunWarning)]
    return model, attribution, said


def checks(attribution):
    rows = attribution.coverage().to_pylist()
    return {r["parameter"]: r["owners_checked"] for r in rows}


def status(attribution):
    rows = attribution.coverage().to_pylist()
    return {r["parameter"]: (r["status"], r["captured_as"]) for r in rows}


def tokens():
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(11, (40, 7), generator=generator)
    return t, t[:, 0] % 3


RIGHT = {
    "plain": (Net, data),
    "sorted": (Sorted, data),
    "experts": (Experts, data),
    "dropout": (lambda: Net(nn.Dropout(0.4)), data),
    "lstm": (Recurrent, tokens),
}


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_model_raises_no_alarm_and_both_checks_are_made(name, capture):
    build, batch = RIGHT[name]
    _, attribution, said = train(build, batch(), capture=capture)
    assert not said
    for parameter, done in checks(attribution).items():
        assert "tinted step" in done, parameter
        assert "lone step" in done, parameter


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", RIGHT)
def test_training_is_bit_for_bit_as_without(name, capture):
    build, batch = RIGHT[name]
    plain, _, _ = train(build, batch(), attach=False, steps=6)
    state = torch.get_rng_state()
    checked, _, _ = train(build, batch(), capture=capture, steps=6)
    assert torch.equal(state, torch.get_rng_state())
    for p, q in zip(plain.parameters(), checked.parameters(), strict=True):
        assert torch.equal(p, q)


WRONG = {
    "a hidden mixing": ("Mix.apply", rowwise, lambda: Net(lambda h: Mix.apply(h)), {"a"}),
    "rolled": ("tanh", rolled, Net, {"a"}),
    "two exchanged": ("tanh", exchanged_pair, Net, {"a"}),
    "flipped": ("flip", rowwise, lambda: Net(reverse), {"a"}),
}


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", WRONG)
def test_tinted_gradients_find_a_wrong_owner_in_the_first_block(monkeypatch, name, capture):
    operation, rule, build, wrong = WRONG[name]
    believed(monkeypatch, operation, rule)
    monkeypatch.setattr("inrun.capture._owner_checks.OwnerChecks._wants_lone", False)
    _, attribution, said = train(build, data(), steps=1, capture=capture)
    for parameter, (found, why) in status(attribution).items():
        if parameter.split(".")[0] in wrong:
            assert found == "not captured", parameter
            assert "tinted" in why
        else:
            assert found == "captured", parameter
    assert len([text for text in said if "not captured" in text and "tinted" in text]) == 1


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("name", WRONG)
def test_a_lone_sample_finds_a_wrong_owner(monkeypatch, name, capture):
    operation, rule, build, wrong = WRONG[name]
    believed(monkeypatch, operation, rule)
    monkeypatch.setattr("inrun.capture._owner_checks.MOST_SEQUENCES", 0)
    monkeypatch.setattr("random.Random.choice", lambda self, given: given[0])
    _, attribution, said = train(build, data(), steps=3, capture=capture)
    found = status(attribution)
    assert any("a lone sample" in text or "A sample alone" in text for text in said)
    for parameter, (how, why) in found.items():
        if parameter.split(".")[0] in wrong:
            assert how == "not captured", parameter
            assert "lone sample" in why
