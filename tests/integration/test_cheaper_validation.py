"""Less validation: the next training batch in place of a validation set, or a part of its rows."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning, MisuseError
from tests.oracles import shares as oracle_shares
from tests.settings import flat

BATCH, STEPS = 5, 8


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 6, generator=generator).double()
    return x, torch.randint(3, (100,), generator=generator)


def started():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def following(**options):
    x, y = data()
    model, optimizer = started()
    given = {"smoothed_steps": 0, "contraction": "dense", "progress": False} | options
    utility = inrun.Utility.next_batch(loss_fn, (x[:3], y[:3]))
    return model, optimizer, inrun.attach(model, optimizer, utility, **flat(**given))


def step(model, optimizer, attribution, number, clip=0.3, zero_in_place=False):
    x, y = data()
    ids = torch.arange(BATCH) + BATCH * number
    with attribution.batch(ids):
        loss_fn(model, (x[ids], y[ids])).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=not zero_in_place)
    return min(1.0, clip / (float(norm) + 1e-6))


def displacement(optimizer, gradients, decay):
    """w - w' of the real optimizer's step, from a copy."""
    other = copy.deepcopy(optimizer)
    parameters = other.param_groups[0]["params"]
    before = [p.detach().clone() for p in parameters]
    other.param_groups[0]["weight_decay"] = decay
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    other.step()
    return [b - p.detach() for b, p in zip(before, parameters, strict=True)]


def told_by_the_next_gradient(steps=STEPS):
    """(values (steps - 1, B), momentum (steps - 1,)) of the same training, step by step."""
    x, y = data()
    model, optimizer = started()
    named, kept = dict(model.named_parameters()), []
    values, momentum = [], []
    for number in range(steps):
        ids = torch.arange(BATCH) + BATCH * number

        def terms(m, rows, ids=ids):
            each = F.cross_entropy(m(x[ids[rows]]), y[ids[rows]], reduction="none")
            return each / BATCH

        shares = oracle_shares.shares(model, terms, BATCH, named)
        loss_fn(model, (x[ids], y[ids])).backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.3))
        clip = min(1.0, 0.3 / (norm + 1e-6))
        gradients = [p.grad.clone() for p in named.values()]
        if kept:
            slopes, null, before = kept
            parts = zip(gradients, slopes, before, strict=True)
            values.append(sum((g * D * c).flatten(1).sum(1) for g, D, c in parts))
            momentum.append(sum((g * d).sum() for g, d in zip(gradients, null, strict=True)))
        nothing = [torch.zeros_like(g) for g in gradients]
        null = displacement(optimizer, nothing, 0.0)
        whole = displacement(optimizer, gradients, 0.0)
        slopes = [
            torch.where(g == 0, 0, (a - b) / g)
            for a, b, g in zip(whole, null, gradients, strict=True)
        ]
        kept = slopes, null, [clip * shares[name] for name in named]
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(values).numpy(), torch.stack(momentum).numpy()


@pytest.mark.parametrize("zero_in_place", [False, True])
def test_a_step_is_judged_by_the_gradient_that_the_next_one_consumes(tmp_path, zero_in_place):
    model, optimizer, attribution = following(store=tmp_path / "run")
    for number in range(STEPS):
        step(model, optimizer, attribution, number, zero_in_place=zero_in_place)
    attribution.detach()
    values, momentum = told_by_the_next_gradient()
    visits = attribution.visits()
    assert visits["step"].to_pylist() == np.repeat(range(1, STEPS), BATCH).tolist()
    assert visits["sample_id"].to_pylist() == list(range(BATCH * (STEPS - 1)))
    np.testing.assert_allclose(visits["value"].to_numpy(), values.ravel(), rtol=1e-6, atol=1e-12)
    ledger = attribution.ledger()
    np.testing.assert_allclose(ledger["momentum"].to_numpy(), momentum, rtol=1e-6, atol=1e-12)
    for column in ("opening_loss", "closing_loss", "residual"):
        assert np.isnan(ledger[column].to_numpy()).all()


def test_no_validation_pass_is_run_and_training_is_not_changed():
    model, optimizer, attribution = following(self_test=False)
    plain, other = started()
    quiet = inrun.attach(
        plain,
        other,
        inrun.Utility(loss_fn, data()),
        options=inrun.Options(progress=False, smoothed_steps=0),
    )
    runs = []
    model.register_forward_hook(lambda m, *_: runs.append(1) if m.training else None)
    for number in range(STEPS):
        step(model, optimizer, attribution, number)
        step(plain, other, quiet, number)
    assert len(runs) == STEPS
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_steps_that_are_not_scored_judge_those_before_them():
    model, optimizer, attribution = following(every=4)
    for number in range(16):
        step(model, optimizer, attribution, number)
    values, _ = told_by_the_next_gradient(16)
    rows = attribution.values().to_pylist()
    assert len(rows) >= 3 * BATCH
    for row in rows:
        number, place = divmod(row["sample_id"], BATCH)
        assert row["value"] == pytest.approx(4 * values[number, place], rel=1e-6)


def test_a_step_before_a_paused_one_is_not_scored():
    model, optimizer, attribution = following()
    x, y = data()
    for number in range(2):
        step(model, optimizer, attribution, number)
    with attribution.paused():
        loss_fn(model, (x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for number in range(2, 4):
        step(model, optimizer, attribution, number)
    assert attribution.ledger()["step"].to_pylist() == [1, 3]


def test_payouts_behind_the_next_batch_are_momentum_s_entries():
    model, optimizer, attribution = following(momentum_window=100)
    for number in range(STEPS):
        step(model, optimizer, attribution, number)
    attribution.detach()
    books = attribution.ledger()
    momentum, paid = (books[c].to_numpy().sum() for c in ("momentum", "paid_out"))
    assert paid == pytest.approx(momentum, rel=1e-9)


@pytest.mark.parametrize("payout", [0, 2])
def test_a_checkpoint_is_without_the_step_that_waits_and_the_run_goes_on_with_it(payout):
    model, optimizer, attribution = following(momentum_window=payout)
    for number in range(3):
        step(model, optimizer, attribution, number)
    state = attribution.state_dict()
    step(model, optimizer, attribution, 3)
    step(model, optimizer, attribution, 4)
    assert attribution.ledger()["step"].to_pylist() == [1, 2, 3, 4]
    again = following(momentum_window=payout)[2]
    again.load_state_dict(state)
    assert again.ledger()["step"].to_pylist() == [1, 2]


def test_what_needs_a_validation_loss_is_refused():
    model, optimizer, attribution = following()
    with pytest.raises(MisuseError, match="validation loss"):
        attribution.audit(seconds=1, steps=3)
    with pytest.raises(MisuseError, match="validation loss"):
        attribution.per_token(lambda m, b: m(b))
    attribution.detach()
    for options in ({"capture": "stream"}, {"estimator": "path-given"}):
        with pytest.raises(MisuseError, match=r"next_batch"):
            inrun.attach(model, optimizer, inrun.Utility.next_batch(), **flat(**options))


def test_without_validation_rows_owners_are_followed_all_the_same():
    model, optimizer = started()
    attribution = inrun.attach(
        model, optimizer, inrun.Utility.next_batch(), options=inrun.Options(progress=False)
    )
    step(model, optimizer, attribution, 0)
    assert set(attribution.coverage()["owners"].to_pylist()) == {"followed"}


def rotated(parts, steps=12, **options):
    x, y = data()
    model, optimizer = started()
    seen = []

    def watched(m, batch):
        seen.append(len(batch[1]))
        return loss_fn(m, batch)

    utility = inrun.Utility(watched, (x[60:], y[60:]))
    attribution = inrun.attach(
        model,
        optimizer,
        utility,
        **flat(
            validation_parts=parts, self_test=False, progress=False, smoothed_steps=0, **options
        ),
    )
    for number in range(steps):
        step(model, optimizer, attribution, number % 12)
    return attribution, seen


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_each_pass_looks_at_the_next_part_of_the_rows(capture):
    attribution, seen = rotated(4, capture=capture)
    seen = [rows for rows in seen if rows != 3]  # which are looked at when it is attached
    assert set(seen) == {10}
    assert len(seen) == 13  # an opening pass, and one a step
    books = attribution.ledger()
    assert np.isfinite(books["closing_loss"].to_numpy()).all()
    for unknown in ("opening_loss", "residual"):  # what other rows would have had is not known
        assert np.isnan(books[unknown].to_numpy()).all()
    assert all("different validation rows" in note for note in books["note"].to_pylist())
    assert np.isnan(attribution.balance()["fall"])
    assert np.isnan(attribution.residual_share)


def test_the_parts_are_all_of_the_rows_and_their_mean_loss_is_the_whole():
    x, y = data()
    model, _ = started()
    utility = inrun.Utility(
        loss_fn, targets={"a": (x[:20], y[:20]), "b": (x[20:48], y[20:48])}
    ).dealt(4)
    for name in ("a", "b"):
        parts = [utility.part(number).batches[name] for number in range(4)]
        whole = utility.batches[name]
        rows = sorted(tuple(row) for part in parts for row in part[0].tolist())
        assert rows == sorted(tuple(row) for row in whole[0].tolist())
        mean = sum(float(loss_fn(model, part)) for part in parts) / 4
        assert mean == pytest.approx(float(loss_fn(model, whole)))
    assert utility.part(5).batches["a"][0].equal(utility.part(1).batches["a"][0])


def test_over_its_parts_a_dealt_utility_gives_the_whole_s_values():
    """`sgd`'s value is linear in the opening gradient, so the parts' mean is the whole's value."""
    x, y = data()
    values = []
    for part in (None, *range(3)):
        model, optimizer = started()
        utility = inrun.Utility(loss_fn, (x[70:], y[70:])).dealt(3)
        utility = inrun.Utility(loss_fn, (x[70:], y[70:])) if part is None else utility.part(part)
        attribution = inrun.attach(
            model, optimizer, utility, estimator="sgd", options=inrun.Options(progress=False)
        )
        step(model, optimizer, attribution, 0)
        values.append(attribution.values()["value"].to_numpy())
    np.testing.assert_allclose(np.mean(values[1:], axis=0), values[0], rtol=1e-9)


def test_a_resumed_run_looks_at_the_same_parts():
    x, y = data()

    def run(cut=None):
        model, optimizer = started()
        utility = inrun.Utility(loss_fn, (x[60:], y[60:]))
        how = flat(validation_parts=4, progress=False, smoothed_steps=0)
        attach = partial(inrun.attach, model, optimizer, utility, **how)
        attribution = attach()
        for number in range(12):
            if number == cut:
                state = attribution.state_dict()
                attribution.detach()
                attribution = attach()
                attribution.load_state_dict(state)
            step(model, optimizer, attribution, number)
        return attribution

    unknown = ["opening_loss", "residual"]  # NaN
    assert run(cut=5).ledger().drop_columns(unknown) == run().ledger().drop_columns(unknown)


@pytest.mark.parametrize("parts", [0, 2.5, 41, True])
def test_parts_that_cannot_be_made_are_refused(parts):
    x, y = data()
    with pytest.raises(MisuseError, match="validation_parts"):
        inrun.attach(
            *started(), inrun.Utility(loss_fn, (x[60:], y[60:])), **flat(validation_parts=parts)
        )


def test_a_batch_that_cannot_be_cut_has_no_parts():
    with pytest.raises(MisuseError, match="validation_parts"):
        inrun.Utility(loss_fn, [torch.ones(3), torch.ones(4)]).dealt(2)


def refreshed(n, steps=7, **options):
    x, y = data()
    model, optimizer = started()
    utility = inrun.Utility(loss_fn, (x[60:], y[60:]))
    with pytest.warns(InRunWarning, match="older than they are"):
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            **flat(validation_every=n, progress=False, smoothed_steps=0, **options),
        )
    states = []
    for number in range(steps):
        states.append(copy.deepcopy(model))
        step(model, optimizer, attribution, number, clip=1e9)
    return attribution, [*states, copy.deepcopy(model)]


def test_steps_between_passes_are_judged_by_the_last_ones_gradient():
    """`sgd`'s value is lr <opening gradient, share>: of the state where the last pass was."""
    x, y = data()
    attribution, states = refreshed(3, estimator="sgd")
    found = attribution.values().sort_by("sample_id")["value"].to_numpy().reshape(7, BATCH)
    for number, model in enumerate(states[:-1]):
        ids = torch.arange(BATCH) + BATCH * number
        at = states[number - number % 3]  # passes at 0, 3 and 6
        gradients = torch.autograd.grad(loss_fn(at, (x[60:], y[60:])), list(at.parameters()))
        named = dict(model.named_parameters())

        def terms(m, rows, ids=ids):
            each = F.cross_entropy(m(x[ids[rows]]), y[ids[rows]], reduction="none")
            return each / BATCH

        shares = oracle_shares.shares(model, terms, BATCH, named)
        parts = zip(gradients, named, strict=True)
        want = 1e-2 * sum((g * shares[name]).flatten(1).sum(1) for g, name in parts)
        np.testing.assert_allclose(found[number], want, rtol=1e-9, atol=1e-16)


def test_losses_are_known_where_there_was_a_pass():
    x, y = data()
    attribution, states = refreshed(3, capture="stream")
    books = attribution.ledger()
    opening, closing = (books[f"{end}_loss"].to_numpy() for end in ("opening", "closing"))
    assert np.isfinite(opening).tolist() == [number % 3 == 0 for number in range(7)]
    assert np.isfinite(closing).tolist() == [number % 3 == 2 for number in range(7)]
    for number in (0, 3, 6):
        assert opening[number] == pytest.approx(float(loss_fn(states[number], (x[60:], y[60:]))))
    assert np.isfinite(books["samples"].to_numpy()).all()


def test_a_step_that_was_not_scored_is_followed_by_a_new_pass():
    x, y = data()
    model, optimizer = started()
    utility = inrun.Utility(loss_fn, (x[60:], y[60:]))
    with pytest.warns(InRunWarning, match="older"):
        attribution = inrun.attach(
            model, optimizer, utility, **flat(validation_every=10, progress=False)
        )
    for number in range(4):
        if number == 2:
            with attribution.paused():
                loss_fn(model, (x[:5], y[:5])).backward()
                optimizer.step()
                optimizer.zero_grad()
        step(model, optimizer, attribution, number)
    assert np.isfinite(attribution.ledger()["opening_loss"].to_numpy()).tolist() == [
        True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("refresh", [0, 1.5, True])
def test_refreshing_after_no_number_of_steps_is_refused(refresh):
    with pytest.raises(MisuseError, match="validation_every"):
        inrun.EveryStep(validation_every=refresh)
