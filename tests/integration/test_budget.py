"""A budget chooses by measured times between every step, windows and sampled steps, and keeps it.

The clock is the test's: a plain step takes 1 second, and what scoring adds is said beside it.
"""

import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.attribution import _budget
from inrun.attribution._frequency import Ways
from inrun.distributed import Processes
from inrun.ledger import promised

F = nn.functional


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_budget, "time", clock)
    return clock


class Run:
    """Steps as a training has them, with windows whose ends have a given cosine."""

    def __init__(self, clock, share, *, exact, inside=None, border=None, cosine=0.95, halves=None):
        self.clock, self.exact, self.halves = clock, exact, halves or exact
        self.inside, self.border, self.cosine = inside, border, cosine
        self.windows = None
        if inside is not None:
            self.windows = SimpleNamespace(is_open=False, audits=False, told=[], length=1)
            self.windows.set_length = partial(setattr, self.windows, "length")
        ways = Ways(Processes(), halves is not None, self.windows)
        self.budget = _budget.WithinBudget(share, ways)
        self.step, self.begun, self.weights, self.lengths = 0, clock.now, [], []
        self._waiting, self._scored_before = 0, False

    def take(self, steps):
        for _ in range(steps):
            self.step += 1
            weight = self.budget.weight(self.step)
            assert self.budget.weight(self.step) == weight
            self.weights.append(weight)
            self.clock.now += 1 + self.cost(weight)
        return self

    def cost(self, weight):
        if not self.budget.windowed:
            assert self._waiting == 0  # no window is left open
            whole = self.exact if self.budget.parts == 1 else self.halves
            return whole if weight else 0.0
        assert weight == 1
        opening = 0.0 if self.windows.told or self.windows.is_open else self.border
        self.windows.is_open = True
        self._waiting += 1
        if self._waiting < self.windows.length:
            return self.inside + opening
        told = SimpleNamespace(steps=self._waiting, cosine=self.cosine)
        self.windows.told.append(told)
        self.lengths.append(self._waiting)
        self._waiting, self.windows.is_open = 0, False
        return self.border + opening

    @property
    def overhead(self):
        return (self.clock.now - self.begun) / self.step - 1

    @property
    def told(self):
        return self.budget.describe()


def test_before_anything_was_timed_nothing_is_chosen(clock):
    run = Run(clock, 0.05, exact=0.3, inside=0.01, border=0.2).take(12)
    assert run.told["choice"].startswith("not made yet")
    assert "extra" not in run.told


def test_every_step_where_the_share_pays_for_it(clock):
    run = Run(clock, 0.35, exact=0.3, inside=0.01, border=0.2).take(300)
    assert set(run.weights[60:]) == {1.0}
    assert (run.told["every"], run.told["window"]) == (1, 0)
    assert "values are exact" in run.told["choice"]


def test_half_of_the_rows_before_windows(clock):
    run = Run(clock, 0.2, exact=0.3, halves=0.18, inside=0.01, border=0.2).take(300)
    assert run.told["parts"] == 2
    assert set(run.weights[60:]) == {1.0}
    assert not run.lengths


@pytest.mark.parametrize(
    ("share", "shortest"), [(0.05, 6), (0.1, 3), (0.25, 1)]
)  # 0.01 + 0.19 / n + 0.4 / 50 within the share
def test_the_shortest_windows_that_the_share_pays_for(clock, share, shortest):
    run = Run(clock, share, exact=0.4, inside=0.01, border=0.2).take(400)
    assert run.told["window"] == shortest
    assert run.told["every"] == 1
    assert run.told["expected"] == pytest.approx(0.01 + 0.19 / shortest)
    assert promised(run.cosine, shortest) in run.told["choice"]
    assert run.overhead <= share
    chosen = next(i for i, n in enumerate(run.lengths) if n != 4) if shortest != 4 else 0
    assert sum(run.lengths[:chosen]) <= 12  # by then it was tried
    assert set(run.weights[60:]) == {1.0}


def test_what_the_trial_took_beyond_the_share_comes_in_again(clock):
    run = Run(clock, 0.05, exact=0.9, inside=0.02, border=0.4).take(60)
    assert run.overhead > 0.05
    run.take(340)
    assert run.overhead <= 0.052


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_single_steps_where_windows_cost_too_much(clock, share):
    run = Run(clock, share, exact=0.8, inside=0.2, border=0.5).take(400)
    assert run.told["window"] == 0
    assert run.told["every"] >= 0.8 / share
    assert "windows of 20 steps would add 21.5%" in run.told["choice"]
    assert run.overhead <= share * 1.1


def test_models_that_are_so_small_that_no_window_fits_do_not_try_one(clock):
    run = Run(clock, 0.05, exact=5.0, inside=1.0, border=2.0).take(600)
    assert not run.lengths
    assert "were not tried" in run.told["choice"]
    assert run.overhead <= 0.06


def test_windows_that_turn_are_given_up_and_tried_again_later(clock):
    run = Run(clock, 0.05, exact=0.4, inside=0.01, border=0.2, cosine=0.3).take(120)
    assert run.told["window"] == 0
    assert "turn too much within (cosine 0.30)" in run.told["choice"]
    assert "relative_error" in run.told["choice"]
    tried = len(run.lengths)
    run.cosine = 0.9
    run.take(280)
    assert run.lengths[tried:]
    assert run.told["window"] > 1


@pytest.mark.parametrize("cut", [5, 30, 45, 200])
def test_a_run_that_goes_on_chooses_as_one_that_was_not_cut(clock, cut):
    def made():
        return Run(clock, 0.05, exact=0.4, inside=0.01, border=0.2)

    whole, first = made().take(300), made().take(cut)
    while first.windows.is_open:  # a checkpoint closes the window that is open
        first.take(1)
    state, then = first.budget.state(), made()
    kept = copy.deepcopy(state)
    then.budget.restore(state)
    then.windows.told, then.step = first.windows.told, first.step
    then.take(300 - first.step)
    assert state == kept
    assert then.told["window"] == whole.told["window"]
    assert then.told["choice"] == whole.told["choice"]
    assert set(then.weights[-100:]) == set(whole.weights[-100:])


def test_processes_with_other_clocks_choose_alike(clock):
    class Pair(Processes):
        """This process's times and those of another, which is slower."""

        def mean(self, t):
            other = t.clone()
            other[1:] = other[0] + 3 * (t[1:] - t[0])  # what scoring adds, thrice
            return (t + other) / 2

    run = Run(clock, 0.05, exact=0.2, inside=0.005, border=0.1)
    run.budget._processes = Pair()
    run.take(300)
    assert run.told["extra"] == pytest.approx(0.4)
    assert run.told["window"] == 6  # as in one process of the mean times


# ---- in a training


PASS = 0.2  # seconds of a validation pass


def training(clock, share, steps, *, store=None, audited=False, cut=None, lr=1e-3):
    """Validation passes take a fifth of a step; everything else that scoring does takes nothing."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 12).double(), torch.randint(3, (60,))

    def parts(state=None):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 3)).double()

        def judged(model, batch):
            clock.now += PASS
            return F.cross_entropy(model(batch[0]), batch[1])

        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(judged, (x[40:], y[40:])), store=store,
            scoring=inrun.Budget(share), options=inrun.Options(progress=False),
        )  # fmt: skip
        if audited:
            attribution.audit(seconds=10, steps=steps)
        if state is not None:
            found = zip((model, optimizer, attribution), state, strict=True)
            for part, kept in found:
                part.load_state_dict(kept)
        return model, optimizer, attribution

    model, optimizer, attribution = parts()
    for step in range(steps):
        if step == cut:
            state = [copy.deepcopy(p.state_dict()) for p in (model, optimizer, attribution)]
            attribution.detach()
            model, optimizer, attribution = parts(state)
        ids = torch.randint(40, (8,), generator=torch.Generator().manual_seed(step))
        clock.now += 1
        with attribution.batch(ids.tolist()):
            F.cross_entropy(model(x[ids]), y[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    return attribution, model


def test_a_training_is_scored_in_windows_and_its_totals_are_those_of_every_step(clock, tmp_path):
    found, model = training(clock, 0.05, 150, store=tmp_path / "run")
    told = found.sampling
    assert told["window"] == 5  # of 0.2 a pass, and every fiftieth window audited
    assert told["extra"] == pytest.approx(2 * PASS)  # a step by itself has two
    lengths = [window["steps"] for window in found.windows]
    assert lengths[:3] == [4, 4, 4]
    assert sum(lengths) > 100
    exact, same = training(clock, 100.0, 150)
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    notes = [note for note in found.ledger()["note"].to_pylist() if "budget's choice" in note]
    assert len(notes) == 1
    assert "scoring windows, of " in notes[0]
    late = found.visits().to_pandas().query("step > 60").groupby("sample_id")["value"].sum()
    assert (late.index == np.arange(40)).all()
    weights = found.ledger()["weight"].to_numpy()
    assert (weights[-80:] == 1).all()


def test_a_training_that_goes_on_stays_in_windows(clock):
    found, model = training(clock, 0.05, 120, cut=90)
    whole, same = training(clock, 0.05, 120)
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.sampling["window"] == 5
    assert found.sampling["window"] in (5, 6)  # the cut took a pass, which is to come in again
    assert len(found.windows) >= len(whole.windows)
    assert math.isfinite(found.values()["value"].to_numpy().sum())


def test_an_audit_leaves_windows_out(clock):
    found, _ = training(clock, 0.05, 90, audited=True)
    assert not found.windows
    assert found.sampling["every"] > 1
    assert "are not known" in found.sampling["choice"]
