"""A batch in parts: the parts' losses and gradients are those of the whole, or it is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.utility import Utility, curvature, evaluate, losses_of, row_count, take_rows

ROWS = 23


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()


def classes():
    torch.manual_seed(1)
    return torch.randn(ROWS, 4).double(), torch.randint(5, (ROWS,))


def ignoring():
    x, y = classes()
    return x, torch.where(torch.rand(ROWS) < 0.4, -100, y)


def tokens():
    torch.manual_seed(1)
    labels = torch.randint(5, (ROWS, 7))
    labels[torch.rand(ROWS, 7) < 0.4] = -100
    labels[3] = -100  # a row without any
    return {"x": torch.randn(ROWS, 7, 4).double(), "labels": labels, "mask": labels != -100,
            "flag": True, "text": [str(i) for i in range(ROWS)], "nothing": None}  # fmt: skip


def next_token(m, b):
    assert len(b["text"]) == len(b["x"])
    return F.cross_entropy(m(b["x"])[:, :-1].flatten(0, 1), b["labels"][:, 1:].flatten())


def masked(m, b):
    each = m(b["x"]).square().sum(-1)
    return (each * b["mask"]).sum() / b["mask"].sum()


LOSSES = {
    "mean": (lambda m, b: F.cross_entropy(m(b[0]), b[1]), classes),
    "sum": (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), classes),
    "labels": (lambda m, b: F.cross_entropy(m(b[0]), b[1]), ignoring),
    "next token": (next_token, tokens),
    "mask": (masked, tokens),
}


@pytest.mark.parametrize("size", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_parts_add_up_to_the_whole(name, size):
    loss, batch = LOSSES[name]
    m, data = model(), batch()
    parameters = dict(m.named_parameters())
    whole, parts = Utility(loss, data), Utility(loss, data, batch_size=size)
    a, b = evaluate(whole, m, parameters), evaluate(parts, m, parameters)
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses_of(parts, m), a.losses, rtol=1e-12, atol=0)
    along = {n: torch.randn_like(p) for n, p in parameters.items()}
    c, d = (curvature(u, m, parameters, along) for u in (whole, parts))
    for n in parameters:
        torch.testing.assert_close(a.gradients[n], b.gradients[n], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(c[n], d[n], rtol=1e-9, atol=1e-12)


def variance(m, b):
    return m(b[0]).var()


def noisy(m, b):
    return F.mse_loss(m(b[0] + torch.randn_like(b[0])), torch.zeros(len(b[0]), 5).double())


@pytest.mark.parametrize("loss", [variance, noisy])
def test_a_loss_that_parts_do_not_add_up_to_is_refused_at_attach(loss):
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    utility = Utility(loss, classes(), batch_size=5)
    with pytest.raises(MisuseError, match="neither as a sum nor as a mean"):
        inrun.attach(m, optimizer, utility, options=inrun.Options(progress=False, self_test=False))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_what_is_no_number_of_rows_is_refused(size):
    with pytest.raises(MisuseError, match="batch_size"):
        Utility(LOSSES["mean"][0], classes(), batch_size=size)
    with pytest.raises(MisuseError, match="told apart"):
        Utility(LOSSES["mean"][0], (torch.ones(3), torch.ones(4)), batch_size=2)


def test_values_of_a_run_are_those_of_the_whole():
    found = []
    for size in (None, 6):
        m, (x, y) = model(), classes()
        optimizer = torch.optim.AdamW(m.parameters())
        utility = Utility(LOSSES["mean"][0], (x, y), batch_size=size)
        attribution = inrun.attach(m, optimizer, utility, options=inrun.Options(progress=False))
        for step in range(3):
            ids = torch.arange(5) + 5 * step
            with attribution.batch(ids):
                LOSSES["mean"][0](m, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
        found.append(attribution.values()["value"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_no_more_rows_are_passed_at_a_time_than_was_said():
    seen = []

    def loss(m, b):
        seen.append(len(b[0]))
        return F.cross_entropy(m(b[0]), b[1])

    m = model()
    evaluate(Utility(loss, classes(), batch_size=9), m, dict(m.named_parameters()))
    assert max(seen) == 9


BATCHES = {
    "a flag": {"return_loss": True}, "nothing": {"mask": None}, "texts": {"text": ["a"] * ROWS},
    "a size": {"size": (2, 2)}, "a tower": {"other": {"x": torch.ones(ROWS, 4).double()}},
    "an array": {"weight": np.ones(ROWS)}, "a number": {"temperature": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("more", BATCHES)
def test_a_dict_is_one_batch_whatever_it_holds(more):
    x, y = classes()
    loss = lambda m, b: F.cross_entropy(m(b["x"]), b["y"])  # noqa: E731
    utility = Utility(loss, {"x": x, "y": y, **BATCHES[more]})
    assert utility.targets == ("validation",)
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    attribution = inrun.attach(m, optimizer, utility, options=inrun.Options(progress=False))
    with attribution.batch(range(4)):
        loss(m, {"x": x[:4], "y": y[:4]}).backward()
    optimizer.step()
    attribution.detach()
    assert attribution.ledger().num_rows == 1


def test_towers_of_batches_are_one_batch_and_targets_are_said():
    x, y = classes()
    towers = {"query": {"x": x}, "document": {"x": x}}
    assert Utility(lambda m, b: m(b["query"]["x"]).sum(), towers).targets == ("validation",)
    assert Utility(lambda m, b: m(b["x"]).sum(), targets=towers).targets == ("query", "document")


def test_targets_that_are_given_as_a_batch_are_told_how_to_be_given():
    x, y = classes()
    utility = Utility(LOSSES["mean"][0], {"a": (x[:9], y[:9]), "b": (x[9:], y[9:])})
    m = model()
    with pytest.raises(MisuseError, match="targets="):
        evaluate(utility, m, dict(m.named_parameters()))


def test_one_text_a_row_is_taken_with_its_row():
    batch = {"x": torch.arange(3), "text": ["a", "b", "c"], "size": (3, 3, 3), "also": ("x",) * 3}
    assert row_count(batch) == 3
    taken = take_rows(batch, [2, 0])
    assert taken["text"] == ["c", "a"]
    assert taken["also"] == ("x", "x")
    assert taken["size"] == (3, 3, 3)


def test_no_pass_ever_sees_more_rows_than_were_allowed_at_once():
    seen = []

    def loss(m, b):
        seen.append(len(b[0]))
        return F.cross_entropy(m(b[0]), b[1])

    torch.manual_seed(0)
    x, y, model = torch.randn(60, 4), torch.randint(3, (60,)), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attribution = inrun.attach(model, optimizer, Utility(loss, (x, y), batch_size=7))
    for _ in range(2):
        with attribution.batch(range(4)):
            F.cross_entropy(model(x[:4]), y[:4]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    assert max(seen) == 7
