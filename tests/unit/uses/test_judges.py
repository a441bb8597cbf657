"""What judges: stored runs weighed again, shares beside weights, labels that nothing judges."""

import numpy as np
import pytest

import inrun
from inrun.errors import MisuseError
from inrun.ledger import Entries, RunFolder, ledger_rows
from inrun.uses import judge_notes, judged_as, judged_classes, unjudged
from tests.integration.stored import random_run

TARGETS = ("a", "b", "c")


def weighed_run(path, weights, seed=0, extra=None):
    """The same random visits and books, stored under some weights of the targets."""
    rng = np.random.default_rng(seed)
    folder = RunFolder(path, estimator="path", targets=TARGETS, weights=weights, extra=extra)
    folder.create()
    for step in range(1, 7):
        values, books = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
        weight = 3.0 if extra == "standard_error" else 1.0
        entries = Entries(*books)
        rows = ledger_rows(step, "path", 5, TARGETS, weights, entries, weight)
        ids = rng.permutation(12)[:5].tolist()
        paid = values / 2 if extra == "paid_out" else None
        folder.add(step, ids, values, rows, weight, paid)
    folder.flush()
    return inrun.load(path)


def alike(one, other, but=()):
    assert one.column_names == other.column_names
    for name in set(one.column_names) - set(but):
        a, b = one[name].to_pylist(), other[name].to_pylist()
        if isinstance(a[0], float):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13, err_msg=name)
        else:
            assert a == b, name


@pytest.mark.parametrize("extra", [None, "standard_error", "paid_out"])
def test_a_run_weighed_again_is_the_run_that_was_scored_so(tmp_path, extra):
    weights = (0.6, 0.3, 0.1)
    even = weighed_run(tmp_path / "even", (1 / 3,) * 3, extra=extra)
    wanted = weighed_run(tmp_path / "weighed", weights, extra=extra)
    found = even.judged_by(dict(zip(TARGETS, (6, 3, 1), strict=True)))
    assert found.weights == pytest.approx(dict(zip(TARGETS, weights, strict=True)))
    but = ("paid_out",)
    alike(found.visits(), wanted.visits(), but)
    alike(found.values(), wanted.values(), but)
    alike(found.ledger(), wanted.ledger())
    alike(found.ledger("b"), wanted.ledger("b"))
    assert found.balance() == pytest.approx(wanted.balance())


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 1, "c": -1}, dict.fromkeys("abc", 0)])
def test_weights_that_do_not_fit_are_refused(tmp_path, weights):
    with pytest.raises(MisuseError, match="weights must give each target"):
        random_run(tmp_path / "run", 12).judged_by(weights)


@pytest.fixture
def run(tmp_path):
    """Of 12 samples 8 are of a, 3 of b, none of c, and one of d, which nothing judges."""
    stored = random_run(tmp_path / "run", 12, epochs=9)
    labels = ["a"] * 8 + ["b"] * 3 + ["d"]
    stored.describe({"sample_id": range(12), "label": labels})
    return stored


def test_shares_of_the_data_stand_beside_those_of_the_judgement(run):
    found = judged_classes(run)
    assert [j.share for j in found] == pytest.approx([8 / 12, 3 / 12, 0])
    assert [j.weight for j in found] == pytest.approx([1 / 3] * 3)
    said = " ".join(judge_notes(run))
    assert "Every class counts equally." in said
    assert "a is 67% of the samples and 33% of the judgement" in said
    assert "b is 25%" not in said  # not 1.5 times apart
    assert "a is 67%" not in " ".join(judge_notes(judged_as(run, "training")))


def test_judged_by_training_is_weighed_by_shares(run):
    assert judged_as(run, "training").weights == pytest.approx({"a": 8 / 11, "b": 3 / 11, "c": 0})
    assert judged_as(judged_as(run, "training"), "even").weights == pytest.approx(run.weights)
    assert judged_as(run, None) is run
    trained = inrun.rollup(run, "label", judge="training").books
    assert trained == pytest.approx(inrun.rollup(judged_as(run, "training"), "label").books)


def test_judges_that_cannot_be_are_refused(tmp_path, run):
    with pytest.raises(MisuseError, match="not one of even, training"):
        inrun.prune(run, 1, judge="odd")
    with pytest.raises(MisuseError, match="targets are not its samples' labels"):
        judged_as(random_run(tmp_path / "other", 12), "training")
    single = random_run(tmp_path / "single", 12, targets=("validation",))
    with pytest.raises(MisuseError, match="nothing to weigh"):
        judged_as(single, "even")


def test_nothing_is_said_of_a_label_that_nothing_judges(run):
    assert np.flatnonzero(unjudged(run)).tolist() == [11]
    pruning = inrun.prune(run, 11, balanced=None)
    assert 11 not in pruning.dropped
    rows = {row["sample_id"]: row for row in pruning.table.to_pylist()}
    assert rows[11]["confidence"] is None
    assert rows[10]["confidence"] is not None
    assert "No validation row has the label d: of its 1 samples" in str(pruning)


def test_classes_of_few_validation_rows_are_named(run):
    told = [{"sample_id": i, "label": "b" if i < 2 else "a"} for i in range(9)]
    run.describe(run.samples(), told)
    said = " ".join(judge_notes(run))
    assert "fewer than 5 validation rows: b (2)." in said
