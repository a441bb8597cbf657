"""Why a step's loss jumped: books that add up, rows and sources by what is usual, and the proof."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.ledger import Jumps, deviations, usual_of
from inrun.uses import jumps
from tests.integration.stored import stored_run

STEPS, BATCH, BAD_STEP = 80, 8, 47
BAD = [BATCH * (BAD_STEP - 1) + row for row in (1, 3, 4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every sample once but for those of the first ten steps; three rows of one step do harm."""
    rng = np.random.default_rng(0)
    step = np.arange(STEPS * BATCH) // BATCH + 1
    sample = np.arange(STEPS * BATCH)
    sample[-BATCH:] = np.arange(BATCH)
    values = rng.normal(1e-3, 2e-4, (len(step), 1))
    values[BAD] = -0.05
    made = stored_run(tmp_path_factory.mktemp("run") / "r", values, sample, step, sample.tolist())
    ids = np.unique(sample).tolist()
    sources = ["east" if i in BAD or i % 4 == 0 else "west" for i in ids]
    made.describe({"sample_id": ids, "source": sources})
    return made


def test_robust_deviations_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    numbers = rng.normal(size=60)
    numbers[7] = np.nan
    found = deviations(numbers, around=5)
    for at in (0, 20, 59):
        beside = [numbers[i] for i in range(max(0, at - 5), min(60, at + 6)) if i != at]
        beside = np.array([x for x in beside if np.isfinite(x)])
        spread = 1.4826 * np.median(np.abs(beside - np.median(beside)))
        np.testing.assert_allclose(found[at], (numbers[at] - np.median(beside)) / spread)
    assert np.isnan([found[7], usual_of(numbers[7:8])[0]]).all()


def test_the_jump_its_step_its_rows_and_their_source_are_named(run):
    assert jumps(run, 1) == [BAD_STEP]
    found = run.explain()
    assert (found.first, found.last, found.began) == (BAD_STEP, BAD_STEP, BAD_STEP)
    assert sorted(found.named) == BAD
    assert found.sources["source"][0].as_py() == "east"
    assert found.deviations > 8
    assert all(str(word) in repr(found) for word in (BAD_STEP, "rose", "east", "momentum"))


@pytest.mark.parametrize("stretch", [{"step": 12}, {"first": 40, "last": 50}, {"last": 3}])
def test_the_books_in_words_add_up_to_the_change(run, stretch):
    found = inrun.explain(run, **stretch)
    ledger = run.ledger().to_pandas().set_index("step").loc[found.first : found.last]
    change = ledger["closing_loss"].iloc[-1] - ledger["opening_loss"].iloc[0]
    np.testing.assert_allclose(found.change, change)
    np.testing.assert_allclose(sum(found.books.values()), change, atol=1e-12)


def test_other_visits_of_a_row_are_its_own(run):
    found = run.explain(first=1, last=2).table.to_pandas().set_index("sample_id")
    visits = run.visits().to_pandas()
    for who in range(BATCH):  # visited again in the last step
        other = visits[(visits.sample_id == who) & (visits.step == STEPS)].value.iloc[0]
        assert found.loc[who, "other_visits"] == 1
        np.testing.assert_allclose(found.loc[who, "elsewhere"], -other)


def test_a_step_that_is_not_there_and_two_ways_at_once_are_refused(run):
    with pytest.raises(MisuseError, match=f"from 1 to {STEPS}"):
        run.explain(STEPS + 1)
    with pytest.raises(MisuseError, match="not both"):
        run.explain(3, first=1)


def test_only_a_jump_is_told_while_it_trains(run):
    watch = Jumps()
    told = [watch.words(row) for row in run.ledger().to_pylist()]
    assert [step for step, words in enumerate(told, 1) if words] == [BAD_STEP]
    assert f"--step {BAD_STEP}" in told[BAD_STEP - 1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A linear model under SGD; one row of one step has labels of the wrong sign, a hundredfold."""
    torch.manual_seed(0)
    x = torch.randn(240, 5, dtype=torch.float64)
    y = x @ torch.arange(1.0, 6.0, dtype=torch.float64)
    bad = 8 * 20 + 2
    y[bad] *= -100
    model = nn.Linear(5, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def losses(m, ids):
        chosen = torch.as_tensor(ids)
        return F.mse_loss(m(x[chosen])[:, 0], y[chosen], reduction="none") / len(ids)

    def loss_fn(m, batch):
        return F.mse_loss(m(batch[0])[:, 0], batch[1])

    utility = inrun.Utility(loss_fn, (x[200:], y[200:]))
    start = copy.deepcopy(model)
    recorder = inrun.record(model, optimizer, losses, lambda ids: ids, clip_norm=200.0, steps=25)
    store = tmp_path_factory.mktemp("recorded") / "r"
    attribution = inrun.attach(model, optimizer, utility, store=store)
    for ids in torch.arange(200).split(8):
        with recorder.batch(ids.tolist()), attribution.batch(ids.tolist()):
            losses(model, ids.tolist()).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200.0)
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return inrun.load(store), recorder.finish(), utility, bad, (start, losses)


def test_the_ledger_has_learning_rate_gradient_norm_and_clipping(recorded):
    run, _, _, bad, _ = recorded
    books = run.ledger().to_pandas().set_index("step")
    assert (books["learning_rate"] == 0.02).all()
    assert books.loc[21, "gradient_norm"] == pytest.approx(200.0, rel=1e-5)
    assert books.loc[21, "gradient_scale"] < 0.9
    assert (books["gradient_scale"].drop(21) == 1).all()
    found = run.explain(21)
    assert found.named[:1] == [bad]
    assert found.circumstances["gradient_norm"][0] == pytest.approx(200.0, rel=1e-5)


def test_trained_again_without_the_row_is_a_training_without_it(recorded):
    """By a loop of its own from the same start, in which the row has no term."""
    run, recording, utility, bad, (start, losses) = recorded
    found = run.explain(21)
    again = inrun.explain_again(found, recording, utility).table.to_pandas().set_index("trained")
    ledger = run.ledger().to_pandas().set_index("step")
    was, without = again.loc["as it was"], again.loc["without the rows named"]
    np.testing.assert_allclose(was["loss"], ledger.loc[21, "closing_loss"])
    np.testing.assert_allclose(was["loss"] - was["change"], ledger.loc[11, "opening_loss"])
    model, named = copy.deepcopy(start), set(found.named)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for number, ids in enumerate(torch.arange(21 * 8).split(8)):
        terms = losses(model, ids.tolist())
        if number >= 10 and named & set(ids.tolist()):
            stay = [i not in named for i in ids.tolist()]
            terms = terms[torch.tensor(stay)] * len(ids) / sum(stay)
        optimizer.zero_grad()
        terms.sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200.0)
        optimizer.step()
    loss = utility.loss_fn(model, next(iter(utility.batches.values())))
    np.testing.assert_allclose(without["loss"], loss.item())
    assert without["change"] < 0 < was["change"]
    assert bad in named


def test_what_nobody_did_is_not_trained_again(recorded):
    run, recording, utility, *_ = recorded
    found = run.explain(21)
    nobody = dataclasses.replace(found, table=found.table.slice(0, 0))
    with pytest.raises(MisuseError, match="No row stands out"):
        inrun.explain_again(nobody, recording, utility)
