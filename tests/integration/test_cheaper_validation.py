"""Less validation: a part of the rows in each pass, or a pass after every so many steps."""

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


def step(model, optimizer, attribution, number, clip=0.3, zero_in_place=False):
    x, y = data()
    ids = torch.arange(BATCH) + BATCH * number
    with attribution.batch(ids):
        loss_fn(model, (x[ids], y[ids])).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=not zero_in_place)
    return min(1.0, clip / (float(norm) + 1e-6))


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
    ).split(4)
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
        utility = inrun.Utility(loss_fn, (x[70:], y[70:])).split(3)
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
        inrun.Utility(loss_fn, [torch.ones(3), torch.ones(4)]).split(2)


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
