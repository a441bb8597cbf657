"""Pruning: rankings, confidence over visits, balance; the check that decides."""

import json

import numpy as np
import pytest

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.uses import check_pruning, rank
from inrun.uses._ranking import PRIOR, confidence
from tests.integration.stored import random_run, stored_run
from tests.oracles import decisions as oracle


@pytest.fixture
def run(tmp_path):
    stored = random_run(tmp_path / "run", 40, targets=("a", "b", "c"))
    stored.describe({"sample_id": range(40), "label": [i % 4 for i in range(40)]})
    return stored


def test_rankings_are_those_of_their_definitions(run):
    visits = run.visits()
    harm = oracle.harm(visits.to_pylist(), run.targets)
    np.testing.assert_allclose(rank(visits, run.targets, "harm").scores, list_of(harm))
    values = run.values()
    for by, column in (("total", "value"), ("normalised", "value_normalised")):
        np.testing.assert_allclose(
            rank(visits, run.targets, by).scores, values[column].to_numpy(), rtol=1e-9, atol=1e-15
        )


def list_of(by_sample):
    return [by_sample[sample] for sample in sorted(by_sample)]


def test_confidence_is_the_oracles(run):
    numbers = {}
    for visit in run.visits().to_pylist():
        numbers.setdefault(visit["sample_id"], []).append(visit["value_normalised"])
    wanted = list_of(oracle.confidence(numbers, PRIOR))
    np.testing.assert_allclose(rank(run.visits(), run.targets).confidence, wanted, atol=1e-12)


def test_of_samples_without_effect_few_are_surely_harmful():
    rng = np.random.default_rng(0)
    n, visits = 4000, 3
    sure = confidence(rng.normal(size=n * visits), np.tile(np.arange(n), visits), n)
    assert 0.02 < (sure > 0.95).mean() < 0.07
    shifted = confidence(rng.normal(-3, 1, n * visits), np.tile(np.arange(n), visits), n)
    assert (shifted > 0.95).mean() > 0.9


def test_one_visit_gives_no_confidence(tmp_path):
    run = stored_run(
        tmp_path / "run", np.array([[1.0], [-2], [3]]), np.arange(3), np.ones(3, int), range(3)
    )
    pruning = inrun.prune(run, 1)
    assert pruning.table["confidence"].null_count == 3
    assert pruning.perhaps_harmless is None
    assert pruning.dropped == [1]


def test_what_is_dropped_has_the_lowest_scores_and_nothing_is_lost(run):
    pruning = inrun.prune(run, 0.25, by="harm", balanced=None)
    assert pruning.table["worst_target"][0].as_py() in run.targets
    assert len(pruning.dropped) == 10
    assert sorted(pruning.dropped + pruning.kept) == list(range(40))
    scores = dict(zip(*(pruning.table[c].to_pylist() for c in ("sample_id", "score")), strict=True))
    assert max(scores[i] for i in pruning.dropped) <= min(scores[i] for i in pruning.kept)


def test_balanced_drops_the_same_share_of_each_level(run):
    for balanced in ({}, {"balanced": "label"}):
        pruning = inrun.prune(run, 0.2, **balanced)
        assert pruning.balanced == "label"
        counts = np.bincount([i % 4 for i in pruning.dropped], minlength=4)
        assert counts.tolist() == [2, 2, 2, 2]


def test_labels_that_sort_nothing_are_not_balanced_over(tmp_path):
    run = random_run(tmp_path / "run", 10)
    assert inrun.prune(run, 2).balanced is None
    run.describe({"sample_id": range(10), "label": [f"own {i}" for i in range(10)]})
    assert inrun.prune(run, 2).balanced is None


def test_at_least_drops_only_the_surely_harmful(run):
    pruning = inrun.prune(run, 0.9, by="normalised", at_least=0.9)
    sure = pruning.table.filter(pruning.table["dropped"])["confidence"].to_pylist()
    assert sure
    assert min(sure) >= 0.9


def test_string_ids_keep_their_rows(tmp_path):
    ids = ["ü", "a", "Z", "€", "10", "9"]
    run = random_run(tmp_path / "run", 6, ids=ids, targets=("a", "b"))
    value = dict(zip(*(run.values()[c].to_pylist() for c in ("sample_id", "value")), strict=True))
    table = inrun.prune(run, 2, by="total").table.to_pylist()
    assert {row["sample_id"]: row["score"] for row in table} == pytest.approx(value)


@pytest.mark.parametrize("drop", [0, 1.0, 40, -1, 41])
def test_nothing_or_everything_is_no_pruning(run, drop):
    with pytest.raises(MisuseError, match="would leave out"):
        inrun.prune(run, drop)


def test_unknown_names_are_said(run):
    with pytest.raises(MisuseError, match="harm, normalised, total"):
        inrun.prune(run, by="loss")
    with pytest.raises(MisuseError, match="no column 'source' to balance over"):
        inrun.prune(run, balanced="source")


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
