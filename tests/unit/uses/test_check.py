"""Training again beside controls: what decides, and results that are kept."""

import json

import numpy as np
import pytest

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.uses import check_pruning


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
    assert json.loads(store.read_text().splitlines()[1])["of"] == ["all samples", 0]


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


def test_one_arm_or_one_seed_is_no_comparison():
    with pytest.raises(MisuseError, match="two arms"):
        inrun.select.check(lambda arm, seed: 1.0, ("a",))
    with pytest.raises(MisuseError, match="at least 2 trainings"):
        inrun.select.check(lambda arm, seed: 1.0, ("a", "b"), seeds=1)
