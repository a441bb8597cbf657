"""Gradient that belongs to no sample: an entry of its own, and samples' values as they are."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InvariantError, MisuseError
from tests.settings import flat

ROWS = 8


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def penalty(model):
    return 0.05 * sum(p.abs().sum() for p in model.parameters())


def setting(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    x, y = torch.randn(40, 5).to(dtype), torch.randint(3, (40,))
    return model, (x[:24], y[:24]), (x[24:], y[24:])


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def attach(model, optimizer, validation, **options):
    utility = inrun.Utility(loss_fn, validation)
    return inrun.attach(model, optimizer, utility, **flat(progress=False, **options))


def block(attribution, model, data, rows, parts=1):
    ids = torch.as_tensor(rows)
    with attribution.batch(ids):
        (loss_fn(model, (data[0][ids], data[1][ids])) / parts).backward()


def change(model, how):
    if how == "norm":
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    elif how == "value":
        nn.utils.clip_grad_value_(model.parameters(), 0.02)


def gradients(loss, model):
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def expected_of_path(model, optimizer, shares, consumed, validation):
    """<gbar (d(g) - d(0)) / g * k, share> of each share, by real steps of copies."""

    def displaced(gradients):
        pair = copy.deepcopy((model, optimizer))
        for p, g in zip(pair[0].parameters(), gradients, strict=True):
            p.grad = g.clone()
        pair[1].step()
        after = [p.detach() for p in pair[0].parameters()]
        return pair[0], [p.detach() - a for p, a in zip(model.parameters(), after, strict=True)]

    moved, whole = displaced(consumed)
    _, nothing = displaced([torch.zeros_like(g) for g in consumed])
    before, after = (gradients(loss_fn(m, validation), m) for m in (model, moved))
    raw = [sum(parts) for parts in zip(*shares, strict=True)]
    values = []
    for share in shares:
        value = 0.0
        for gv, gw, d, d0, g, r, c in zip(
            before, after, whole, nothing, consumed, raw, share, strict=True
        ):
            slope = torch.where(g == 0, torch.zeros_like(g), (d - d0) / g)
            k = torch.where(r == 0, torch.zeros_like(r), g / r)
            value += float(((gv + gw) / 2 * slope * k * c).sum())
        values.append(value)
    return values


def one_step(attribution, model, optimizer, data, order, how):
    rows = list(range(ROWS))
    if order == "between":
        block(attribution, model, data, rows[:4], 2)
    if order == "after":
        block(attribution, model, data, rows)
    with attribution.unattributed():
        penalty(model).backward()
    if order == "between":
        block(attribution, model, data, rows[4:], 2)
    if order == "before":
        block(attribution, model, data, rows)
    change(model, how)


@pytest.mark.parametrize("order", ["before", "between", "after"])
@pytest.mark.parametrize("how", ["", "norm", "value"])
@pytest.mark.parametrize("capture", ["hold", "offload"])
def test_samples_and_penalty_have_their_own_parts_of_the_real_step(order, how, capture):
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation, capture=capture, smoothed_steps=0,
                         contraction="dense")  # fmt: skip
    for step in range(2):
        shares = [
            gradients(loss_fn(model, (data[0][[i]], data[1][[i]])) / ROWS, model)
            for i in range(ROWS)
        ] + [gradients(penalty(model), model)]
        before = copy.deepcopy((model, optimizer))
        one_step(attribution, model, optimizer, data, order, how)
        consumed = [p.grad.clone() for p in model.parameters()]
        expected = expected_of_path(*before, shares, consumed, validation)
        already = np.zeros(ROWS) if step == 0 else attribution.values()["value"].to_numpy()
        optimizer.step()
        optimizer.zero_grad()
        found = attribution.values()["value"].to_numpy() - already
        np.testing.assert_allclose(found, expected[:-1], rtol=1e-6, atol=1e-12)
        assert attribution.latest["unattributed"] == pytest.approx(expected[-1], rel=1e-6)
    books = attribution.ledger().to_pylist()
    for row in books:
        parts = ("samples", "momentum", "weight_decay", "unattributed", "other", "residual")
        assert sum(row[n] for n in parts) == pytest.approx(
            row["opening_loss"] - row["closing_loss"], abs=1e-12
        )
    assert attribution.residual_share < 0.05
    assert attribution.balance()["unattributed"] == pytest.approx(
        sum(row["unattributed"] for row in books)
    )
    assert {r["status"] for r in attribution.coverage().to_pylist()} == {"captured"}


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_of_sgd_the_entry_is_the_gradients_product(capture):
    model, data, validation = setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attribution = attach(model, optimizer, validation, estimator="sgd", capture=capture)
    along = gradients(loss_fn(model, validation), model)
    own = gradients(penalty(model), model)
    expected = 0.1 * sum(float((a * b).sum()) for a, b in zip(along, own, strict=True))
    one_step(attribution, model, optimizer, data, "after", "")
    optimizer.step()
    assert attribution.latest["unattributed"] == pytest.approx(expected, rel=1e-9)


def test_training_is_bit_for_bit_the_same():
    weights = []
    for attached in (False, True):
        model, data, validation = setting(dtype=torch.float32)
        optimizer = adam(model)
        attribution = attach(model, optimizer, validation) if attached else None
        for _ in range(3):
            if attribution is None:
                loss_fn(model, (data[0][:ROWS], data[1][:ROWS])).backward()
                penalty(model).backward()
            else:
                one_step(attribution, model, optimizer, data, "after", "")
            optimizer.step()
            optimizer.zero_grad()
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_gradient_penalty_is_known():
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    for _ in range(3):
        block(attribution, model, data, list(range(ROWS)))
        with attribution.unattributed():
            x = data[0][:ROWS].clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            slope.pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert attribution.ledger()["unattributed"].to_numpy().all()


def test_what_was_cleared_counts_no_more():
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    with attribution.unattributed():
        penalty(model).backward()
    optimizer.zero_grad()
    block(attribution, model, data, list(range(ROWS)))
    optimizer.step()
    assert attribution.latest["unattributed"] == 0.0
    assert attribution.latest["visits"] == ROWS


def test_a_step_of_nothing_but_a_penalty_is_not_scored_and_said():
    model, _, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    with attribution.unattributed():
        penalty(model).backward()
    with pytest.warns(inrun.errors.InRunWarning, match="without an attribution"):
        optimizer.step()
    assert attribution.ledger().num_rows == 0


@pytest.mark.parametrize("inside", [True, False])
def test_without_it_the_error_shows_the_way_out(inside):
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    if inside:
        with (
            pytest.raises(InvariantError, match=r"attribution\.unattributed\(\)"),
            attribution.batch(range(ROWS)),
        ):
            (loss_fn(model, (data[0][:ROWS], data[1][:ROWS])) + penalty(model)).backward()
    else:
        block(attribution, model, data, list(range(ROWS)))
        penalty(model).backward()
        with pytest.raises(MisuseError, match=r"attribution\.unattributed\(\)"):
            optimizer.step()


def test_it_is_no_part_of_a_block():
    model, data, validation = setting()
    attribution = attach(model, adam(model), validation)
    with pytest.raises(MisuseError, match=r"inside an attribution\.batch"):
        with attribution.batch(range(ROWS)), attribution.unattributed():
            pass


def test_a_missing_block_is_not_hidden_by_a_penalty():
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    loss_fn(model, (data[0][8:16], data[1][8:16])).backward()  # outside every block
    with attribution.unattributed():
        penalty(model).backward()
    with pytest.raises(InvariantError):
        block(attribution, model, data, list(range(ROWS)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_in_an_audit_it_plays_as_the_past_does(when):
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation, capture="hold")
    audit = attribution.audit(seconds=60, steps=8, groups=3)
    for _ in range(8):
        one_step(attribution, model, optimizer, data, when, "norm")
        optimizer.step()
        optimizer.zero_grad()
    table = audit.table()
    assert set(table["players"].to_pylist()) == {3}
    assert np.median(table["relative_error"].to_numpy()) < 0.05
    assert np.median(table["pearson"].to_numpy()) > 0.99


def test_payouts_leave_it_in_the_momentum():
    model, data, validation = setting()
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation, momentum_window=2)
    for _ in range(5):
        one_step(attribution, model, optimizer, data, "before", "")
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    found = attribution.balance()
    parts = sum(number for name, number in found.items() if name != "fall")
    assert parts == pytest.approx(found["fall"], abs=1e-12)
    assert found["paid_out"] != 0
