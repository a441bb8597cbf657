"""Training again beside controls: what decides, and results that are kept."""

import json

import numpy as np
import pytest
from scipy import stats

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.truth import TrainingResults
from inrun.uses import check_pruning
from inrun.uses._gain import EFFECT, half_at_every_look, half_interval, next_of, smallest_seen


@pytest.fixture
def run(labelled_run):
    return labelled_run


class Training:
    """A training whose score is known: the sum of its samples' worth, and a seed's luck."""

    def __init__(self, worth):
        self.worth, self.calls = worth, []

    def __call__(self, ids, seed):
        self.calls.append((tuple(ids), seed))
        luck = np.random.default_rng(seed).normal()
        own = np.random.default_rng([seed, len(self.calls)]).normal() * 1e-3
        return float(sum(self.worth[i] for i in ids)) + luck + own


def test_a_pruning_of_harmful_samples_is_supported(run):
    pruning = inrun.prune(run, 0.2)
    worth = {i: -1.0 if i in pruning.dropped else 0.1 for i in range(40)}
    found = check_pruning(pruning, Training(worth), seeds=3)
    assert found.supported
    assert "better than all samples and than random" in found.verdict
    assert found.gain("all samples").mean == pytest.approx(8.0, abs=0.1)


def test_a_pruning_of_useful_samples_is_not_supported(run):
    pruning = inrun.prune(run, 0.2)
    worth = {i: 1.0 if i in pruning.dropped else 0.1 for i in range(40)}
    found = check_pruning(pruning, Training(worth), seeds=3)
    assert not found.supported
    assert "all samples is better" in found.verdict


def test_a_pruning_no_better_than_random_is_not_supported(run):
    found = check_pruning(inrun.prune(run, 0.2), Training(dict.fromkeys(range(40), 0.0)), seeds=4)
    assert not found.supported


def test_the_control_drops_as_many_of_each_level(run):
    training = Training(dict.fromkeys(range(40), 0.0))
    check_pruning(inrun.prune(run, 0.2, balanced="label"), training, seeds=2)
    kept = [set(ids) for ids, _ in training.calls]
    assert [len(ids) for ids in kept] == [40, 32, 32] * 2
    for ids in (kept[2], kept[5]):
        assert np.bincount([i % 4 for i in ids]).tolist() == [8, 8, 8, 8]
    assert kept[2] != kept[5]


def test_a_stopped_check_goes_on_where_it_was(run, tmp_path):
    pruning, store = inrun.prune(run, 0.2), tmp_path / "check.jsonl"
    training = Training(dict.fromkeys(range(40), 0.0))

    def stopped(ids, seed):
        if len(training.calls) == 4:
            raise KeyboardInterrupt
        return training(ids, seed)

    with pytest.raises(KeyboardInterrupt):
        check_pruning(pruning, stopped, seeds=2, store=store)
    check_pruning(pruning, training, seeds=2, store=store)
    assert len(training.calls) == 6
    with pytest.raises(StoreError, match="another pruning"):
        check_pruning(inrun.prune(run, 0.3), training, seeds=2, store=store)
    store.write_text(store.read_text() + "{")
    with pytest.raises(StoreError, match="remove its last line"):
        check_pruning(pruning, training, seeds=2, store=store)
    assert json.loads(store.read_text().splitlines()[2])["of"] == ["all samples", 0]


@pytest.mark.parametrize("score", [None, float("nan"), "good"])
def test_a_training_that_returns_no_number_is_named(run, score):
    with pytest.raises(MisuseError, match="one finite number"):
        check_pruning(inrun.prune(run, 0.2), lambda ids, seed: score, seeds=2)


def test_gains_are_differences_within_a_seed():
    score = {"a": [1.0, 5.0, 3.0], "b": [0.5, 4.0, 2.9]}
    check = inrun.select.check(lambda arm, seed: score[arm][seed], ("a", "b"), seeds=3)
    assert check.scores == score
    np.testing.assert_allclose(check.gain("b").mean, np.mean([0.5, 1.0, 0.1]))
    assert not check.supported
    assert "Not supported: a is not shown to be better than b." in str(check)


def test_a_check_that_was_stopped_goes_on(tmp_path):
    calls = []

    def train(arm, seed):
        calls.append((arm, seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(seed)

    with pytest.raises(KeyboardInterrupt):
        inrun.select.check(train, ("a", "b"), seeds=2, store=tmp_path / "check.jsonl")
    check = inrun.select.check(train, ("a", "b"), seeds=2, store=tmp_path / "check.jsonl")
    assert check.scores == {"a": [0.0, 1.0], "b": [0.0, 1.0]}
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("a", 1), ("b", 1)]
    with pytest.raises(StoreError, match="another selection"):
        inrun.select.check(train, ("a", "c"), seeds=2, store=tmp_path / "check.jsonl")


def differences(seed, gain=0.0, spread=1.0):
    return gain + spread * np.random.default_rng(seed).normal()


def compared(seeds, **how):
    """A check of two arms whose scores differ by independent normal numbers."""
    return inrun.select.check(
        lambda arm, seed: differences(seed, how.get("gain", 0.0)) if arm == "a" else 0.0,
        ("a", "b"), seeds=seeds, **{k: v for k, v in how.items() if k != "gain"},
    )  # fmt: skip


def test_intervals_of_the_planned_number_are_students():
    check = compared(6)
    gains = np.array([differences(seed) for seed in range(6)])
    low, high = stats.t.interval(0.95, 5, gains.mean(), stats.sem(gains))
    np.testing.assert_allclose(check.gain("b"), [gains.mean(), low, high])
    assert not check.looked


def test_more_or_fewer_trainings_than_planned_widen_the_interval(tmp_path):
    compared(6, store=tmp_path / "six.jsonl")
    fewer, more = (compared(n, store=tmp_path / "six.jsonl") for n in (5, 8))
    for found, n in ((fewer, 5), (more, 8)):
        plain = compared(n)
        assert found.looked
        assert found.planned == 6
        assert found.gain("b").low < plain.gain("b").low
        assert found.smallest_seen("b") > plain.smallest_seen("b")
        assert found.next_gain("b") == plain.next_gain("b")
    assert "6 planned; intervals allow a look after each" in str(more)


def test_a_file_of_before_plans_were_kept_was_planned_as_it_stands(tmp_path):
    place = tmp_path / "old.jsonl"
    question = {"choice": "a", "saved": None, "arms": {"a": "a", "b": "b"}}
    results = TrainingResults(place, "selection", question)
    for seed in range(4):
        results.add(("a", seed), [differences(seed), 1.0])
        results.add(("b", seed), [0.0, 1.0])
    assert inrun.load(place).planned is None
    assert not inrun.load(place).looked
    assert compared(5, store=place).planned == 4


def test_a_check_goes_on_until_it_is_decided():
    assert len(compared(3, gain=20.0, at_most=30).scores["a"]) == 3
    one = compared(4, gain=0.75, at_most=90)
    count = len(one.scores["a"])
    assert 4 < count < 90
    assert one.supported
    assert not compared(4, gain=0.75, at_most=count - 1).supported
    assert len(compared(3, at_most=7).scores["a"]) == 7


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 40])
def test_the_interval_of_every_look_ends_where_the_mixture_ratio_is_twenty(n):
    """The marginal likelihoods by quadrature: effect from a normal, scale from its Haar measure."""
    x = np.random.default_rng(n).normal(size=n)
    half = half_at_every_look(x)
    if not np.isfinite(half):
        assert mixture_ratio(1e9, n) < 20
        return
    t = half * np.sqrt(n) / x.std(ddof=1)
    assert mixture_ratio(t, n) == pytest.approx(20, rel=1e-6)


def mixture_ratio(t, n):
    """Density of Student's t, its noncentrality drawn from N(0, n EFFECT^2), over that of 0."""
    if t > 1e8:  # the mixture is Student's t, wider by sqrt(1 + n EFFECT^2)
        return (1 + n * EFFECT**2) ** ((n - 1) / 2)
    shift = np.linspace(-9, 9, 4001)
    weights = stats.norm.pdf(shift) * (shift[1] - shift[0])
    return stats.nct.pdf(t, n - 1, shift * np.sqrt(n) * EFFECT) @ weights / stats.t.pdf(t, n - 1)


def test_looking_after_every_training_supports_nothing_too_often():
    """300 sequences of no gain, looked at from 2 to 20; Student's interval fails this."""
    x = np.random.default_rng(0).normal(size=(300, 20))
    looked, fixed = (
        np.mean([any(row[:n].mean() > half(row[:n]) for n in range(2, 21)) for row in x])
        for half in (half_at_every_look, half_interval)
    )
    assert looked < 0.05
    assert fixed > 0.1


def test_the_smallest_gain_is_seen_four_times_of_five():
    rng = np.random.default_rng(1)
    for n in (3, 5, 10):
        x = rng.normal(size=(600, n))
        smallest = np.mean([smallest_seen(row) for row in x])
        assert 0.75 < np.mean([row.mean() + smallest > half_interval(row) for row in x]) < 0.85


def test_the_next_training_is_where_it_is_expected():
    x = np.random.default_rng(2).normal(size=(2000, 6))
    inside = [found.low < row[5] < found.high for row in x for found in [next_of(row[:5])]]
    assert 0.94 < np.mean(inside) < 0.96


def test_one_arm_or_one_seed_is_no_comparison():
    with pytest.raises(MisuseError, match="two arms"):
        inrun.select.check(lambda arm, seed: 1.0, ("a",))
    with pytest.raises(MisuseError, match="at_most is 3, below the 5"):
        inrun.select.check(lambda arm, seed: 1.0, ("a", "b"), at_most=3)
    with pytest.raises(MisuseError, match="at least 2 trainings"):
        inrun.select.check(lambda arm, seed: 1.0, ("a", "b"), seeds=1)
