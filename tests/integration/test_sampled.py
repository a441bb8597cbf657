"""Scoring only some steps: they are scored as ever, stand for the others, totals are unbiased."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.attribution import _budget, _frequency
from inrun.errors import MisuseError
from tests.settings import flat

SAMPLES, BATCH, EPOCHS = 48, 8, 5


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Passes:
    """Counts validation passes."""

    def __init__(self):
        self.count = 0

    def __call__(self, model, batch):
        self.count += 1
        return loss_fn(model, batch)


def trained(store=None, blocks=1, until=None, resumed=None, at=None, **options):
    """(attribution, model, validation passes) after a run; `at` steps it gives its states too."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 6, generator=generator).double()
    y = torch.randint(3, (80,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    passes = Passes()
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(passes, (x[SAMPLES:], y[SAMPLES:])),
        store=store,
        **flat(smoothed_steps=0, progress=False, self_test=False, **options),
    )
    passes.count = 0  # attaching calls the loss to see where samples lie
    step, kept = 0, None
    if resumed is not None:
        step = resumed["step"]
        model.load_state_dict(resumed["model"])
        optimizer.load_state_dict(resumed["optimizer"])
        attribution.load_state_dict(resumed["attribution"])
    order = [
        torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(e)) for e in range(EPOCHS)
    ]
    batches = [ids for epoch in order for ids in epoch.split(BATCH)]
    for ids in batches[step:until]:
        for part in ids.chunk(blocks):
            with attribution.batch(part):
                (loss_fn(model, (x[part], y[part])) / blocks).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step == at:
            kept = {
                "step": step, "model": copy.deepcopy(model.state_dict()),
                "optimizer": copy.deepcopy(optimizer.state_dict()),
                "attribution": attribution.state_dict(),
            }  # fmt: skip
    return (attribution, model, passes.count) if at is None else kept


def by_visit(table):
    return {(row["step"], row["sample_id"]): row for row in table.to_pylist()}


@pytest.mark.parametrize("every", [3, 0.4])
@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_scored_steps_have_the_values_of_a_run_that_scores_all_times_their_weight(
    tmp_path, every, capture
):
    whole, model, _ = trained(tmp_path / "whole", capture=capture)
    some, same, _ = trained(tmp_path / "some", capture=capture, every=every)
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    expected, found = by_visit(whole.visits()), by_visit(some.visits())
    assert 0 < len(found) < len(expected)
    for visit, row in found.items():
        assert row["weight"] == pytest.approx(3 if every == 3 else 1 / 0.4)
        for name in ("value", "value_normalised"):
            assert row[name] == pytest.approx(row["weight"] * expected[visit][name], rel=1e-9)


def test_each_window_has_one_scored_step_and_the_others_run_no_validation_pass():
    attribution, _, passes = trained(every=5)
    steps = attribution.ledger()["step"].to_pylist()
    assert [(step - 1) // 5 for step in steps] == list(range(len(steps))) == list(range(6))
    assert len({(step - 1) % 5 for step in steps}) > 1  # drawn, not in a fixed place
    following = sum(b == a + 1 for a, b in pairwise(steps))
    assert passes == 2 * len(steps) - following
    assert attribution.sampling["steps"] == 30
    assert attribution.sampling["scored"] == 6


def test_the_books_of_a_scored_step_close_times_its_weight():
    attribution, _, _ = trained(every=4)
    for row in attribution.ledger().to_pylist():
        entries = sum(row[name] for name in ("samples", "momentum", "weight_decay", "residual"))
        assert row["weight"] == 4
        assert entries == pytest.approx(4 * (row["opening_loss"] - row["closing_loss"]))


@pytest.mark.parametrize("every", [4, 0.25])
def test_over_all_draws_totals_are_those_of_a_run_that_scores_all(tmp_path, monkeypatch, every):
    """Values do not depend on the draw, so one run and the draws of many seeds say it."""
    whole, _, _ = trained(tmp_path / "whole")
    visits = whole.visits().to_pandas()
    exact = visits.groupby("sample_id")["value"].sum().to_numpy()
    kind = _frequency.OneInEach(4) if every == 4 else _frequency.Coin(every)
    totals, errors = [], []
    for seed in range(2000):
        monkeypatch.setattr(_frequency, "SEED", 1000 * seed)
        weight = visits["step"].map({step: kind.weight(step) for step in range(1, 31)})
        scaled = (visits["value"] * weight).groupby(visits["sample_id"]).sum().to_numpy()
        doubt = (visits["value"] ** 2 * weight * (weight - 1)).groupby(visits["sample_id"]).sum()
        totals.append(scaled)
        errors.append(doubt.to_numpy())
    spread = np.std(totals, axis=0)
    assert np.abs(np.mean(totals, axis=0) - exact).max() < 5 * spread.max() / 2000**0.5
    # the variance that is told is the one that is there, but for two visits within one window
    ratio = np.mean(errors, axis=0) / spread**2
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert (np.abs(ratio - 1) < 0.25).mean() > (0.9 if every == 4 else 0.99)


def test_the_standard_error_is_that_of_the_visits_live_and_stored(tmp_path):
    attribution, _, _ = trained(tmp_path / "run", every=3)
    attribution.flush()
    live, stored = attribution.values(), inrun.load(tmp_path / "run").values()
    assert live.schema == stored.schema
    visits = attribution.visits().to_pandas()
    variance = (visits["value"] / 3) ** 2 * 3 * 2
    expected = variance.groupby(visits["sample_id"]).sum() ** 0.5
    for table in (live, stored):
        np.testing.assert_allclose(table["standard_error"].to_numpy(), expected, rtol=1e-12)
    doubt = (live["standard_error"].to_numpy() ** 2).sum()
    relative = (doubt / ((live["value"].to_numpy() ** 2).sum() - doubt)) ** 0.5
    assert attribution.sampling["relative_error"] == pytest.approx(relative)
    assert "standard_error" not in trained()[0].values().column_names


def test_blocks_of_one_step_are_scored_together():
    one, _, _ = trained(every=3)
    two, _, _ = trained(every=3, blocks=2)
    np.testing.assert_allclose(one.values()["value"], two.values()["value"], rtol=1e-9)


@pytest.mark.parametrize("options", [{"every": 3}, {"every": 0.5}, {"budget": 1e-9}])
def test_a_resumed_run_draws_the_steps_of_one_that_was_not_cut(options):
    whole, _, _ = trained(**options)
    kept = trained(at=13, until=13, **options)
    resumed, _, _ = trained(resumed=kept, **options)
    if "every" in options:  # a budget looks at the clock, which no two runs share
        live, again = whole.values(), resumed.values()
        np.testing.assert_allclose(again["standard_error"], live["standard_error"], rtol=1e-12)
        assert again.drop(["standard_error"]) == live.drop(["standard_error"])
    assert resumed.sampling["steps"] == 30
    assert resumed.ledger()["step"].to_pylist()[:3] == whole.ledger()["step"].to_pylist()[:3]


class Clock:
    """Steps take 1 second, scored ones 1.3."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(("share", "every"), [(0.055, 6), (0.11, 3), (0.4, 1), (1e-6, 1000)])
def test_a_budget_finds_the_frequency_that_keeps_it(monkeypatch, share, every):
    clock = Clock()
    monkeypatch.setattr(_budget, "time", clock)
    budget = _budget.WithinBudget(share, _budget.Ways(inrun.distributed.Processes()))
    weights = []
    for step in range(1, 4000):
        weights.append(budget.weight(step))
        assert budget.weight(step) == weights[-1]  # asked again, it says the same
        clock.now += 1.3 if weights[-1] else 1.0
    told = budget.describe()
    assert told["every"] == every
    assert told["extra"] == pytest.approx(0.3)
    assert told["expected"] == pytest.approx(0.3 / every)
    steady = weights[2000:]
    assert sum(w > 0 for w in steady) == pytest.approx(len(steady) / every, abs=1.5)


@pytest.mark.parametrize(("share", "parts", "every"), [(0.1, 2, 2), (0.15, 2, 1), (0.4, 1, 1)])
def test_a_budget_halves_the_validation_rows_before_it_leaves_steps_out(
    monkeypatch, share, parts, every
):
    clock = Clock()
    monkeypatch.setattr(_budget, "time", clock)
    budget = _budget.WithinBudget(share, _budget.Ways(inrun.distributed.Processes(), halves=True))
    for step in range(1, 4000):
        scored = budget.weight(step) > 0
        clock.now += 1.0 + scored * (0.3 if budget.parts == 1 else 0.15)
    told = budget.describe()
    assert (told["parts"], told["every"]) == (parts, every)
    assert told["expected"] <= share * 1.0001
    again = _budget.WithinBudget(share, _budget.Ways(inrun.distributed.Processes(), halves=True))
    again.restore(budget.state())
    assert again.describe() == told


@pytest.mark.parametrize(("options", "seen"), [({}, {24, 12}), ({"capture": "stream"}, {24})])
def test_passes_look_at_half_of_the_rows_once_the_budget_says_so(options, seen):
    rows = set()
    x, y = torch.randn(24, 3).double(), torch.randint(2, (24,))

    def watched(model, batch):
        rows.add(len(batch[1]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters())
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(watched, (x, y)),
        **flat(budget=1e-9, progress=False, self_test=False, **options),
    )
    rows.clear()  # attaching looks at a few rows
    for _ in range(60):
        with attribution.batch(range(4)):
            nn.functional.cross_entropy(model(x[:4]), y[:4]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert rows == seen
    assert attribution.sampling["parts"] == 24 / min(seen)


def test_a_budget_is_kept_to_what_it_says_of_itself():
    attribution, _, _ = trained(budget=0.3)
    told = attribution.sampling
    assert told["budget"] == 0.3
    assert told["scored"] < told["steps"] == 30
    assert attribution.values()["standard_error"].to_numpy().max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0}, {"every": -1}, {"every": 2.5}, {"every": "3"}, {"every": True},
        {"budget": 0}, {"budget": -1}, {"budget": True}, {"budget": "5 %"},
    ],
)  # fmt: skip
def test_frequencies_that_mean_nothing_are_refused(options):
    with pytest.raises(MisuseError, match=r"every|Budget"):
        trained(**options)


@pytest.mark.parametrize("every", [3, 12])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_relative_error_that_is_told_is_the_true_one(every, rows):
    """Over many draws of the same visits; with several rows of an id in one step."""
    rng = np.random.default_rng(0)
    steps, samples = 240, 300
    visits = [
        (
            np.repeat(rng.choice(samples, 20, replace=False), rows),
            rng.normal(0.2, 1, (20 * rows, 1)),
        )
        for _ in range(steps)
    ]
    if rows > 1:  # an id's rows are alike
        visits = [(ids, values[:20].repeat(rows, 0)) for ids, values in visits]
    exact = np.zeros(samples)
    for ids, values in visits:
        np.add.at(exact, ids, values[:, 0])
    told, squares, doubts = [], np.zeros(samples), np.zeros(samples)
    for seed in range(300):
        draw = np.random.default_rng(seed)
        running_totals = inrun.ledger.RunningTotals(("validation",), (1.0,), "standard_error")
        for step, (ids, values) in enumerate(visits):
            if draw.random() < 1 / every:
                running_totals.add(step, ids.tolist(), values, float(every))
        table = running_totals.table().to_pandas().set_index("sample_id")
        found = table["value"].reindex(range(samples), fill_value=0.0).to_numpy()
        squares += (found - exact) ** 2 / 300
        doubts += table["standard_error"].reindex(range(samples), fill_value=0.0) ** 2 / 300
        told.append(running_totals.relative_error)
    assert doubts.sum() == pytest.approx(squares.sum(), rel=0.1)
    assert np.median(told) == pytest.approx(np.sqrt(squares.sum() / (exact**2).sum()), rel=0.1)


def test_rows_of_one_id_in_one_step_are_drawn_together_live_and_stored(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss_fn, (x[30:], y[30:])),
        store=tmp_path / "run",
        scoring=inrun.Sampled(2),
        options=inrun.Options(progress=False),
    )
    for step in range(8):
        rows = torch.arange(6) + 3 * step
        with attribution.batch([0, 0, 1, 1, 1, 2 + step]):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    visits = attribution.visits().to_pandas()
    steps = visits.groupby(["sample_id", "step"])["value"].sum()
    expected = (0.5 * steps**2).groupby("sample_id").sum() ** 0.5
    for table in (attribution.values(), inrun.load(tmp_path / "run").values()):
        np.testing.assert_allclose(table["standard_error"].to_numpy(), expected, rtol=1e-9)
