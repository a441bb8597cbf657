"""Pruning: what is dropped, balance, and what is refused."""

import numpy as np
import pytest

import inrun
from inrun.errors import MisuseError
from tests.integration.stored import random_run, stored_run


@pytest.fixture
def run(labelled_run):
    return labelled_run


def test_one_visit_gives_no_confidence(tmp_path):
    run = stored_run(
        tmp_path / "run", np.array([[1.0], [-2], [3]]), np.arange(3), np.ones(3, int), range(3)
    )
    pruning = inrun.prune(run, 1)
    assert pruning.table["confidence"].null_count == 3
    assert pruning.positive_again is None
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


def test_at_least_drops_only_the_surely_harmful(tmp_path):
    run = random_run(tmp_path / "run", 40, epochs=8)
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
    with pytest.raises(MisuseError, match="harm, label_doubt, normalised, total"):
        inrun.prune(run, by="loss")
    with pytest.raises(MisuseError, match="no column 'source' to balance over"):
        inrun.prune(run, balanced="source")


def test_named_samples_are_left_out_and_no_others(run):
    pruning = inrun.prune(run, [3, 7, 8])
    assert (pruning.by, sorted(pruning.dropped)) == ("name", [3, 7, 8])
    assert pruning.balanced == "label"  # so that a random control drops as many of each label
    assert pruning.table["score"].to_pylist() == sorted(pruning.table["score"].to_pylist())


@pytest.mark.parametrize("drop", [[], range(40), [1, 99]])
def test_names_of_nobody_or_everybody_are_refused(run, drop):
    with pytest.raises(MisuseError, match=r"would leave out|of no sample of the run, such as 99"):
        inrun.prune(run, drop)
