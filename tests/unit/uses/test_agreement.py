"""Agreement with another training, and what lies between labels, from a run's visits."""

import numpy as np
import pyarrow as pa
import pytest

import inrun
from inrun.uses import agreements
from inrun.utility import HALF
from tests.integration.stored import random_run


def table(x, targets=None):
    """Visits of x (E, N): sample j in step i."""
    visits, samples = x.shape
    step, sample = np.divmod(np.arange(x.size), samples)
    columns = {"step": step, "sample_id": sample, "value": x.ravel(), "value_normalised": x.ravel()}
    return pa.table(columns | {name: t.ravel() for name, t in (targets or {}).items()})


def row(found, ranking):
    return next(r for r in found.table.to_pylist() if r["ranking"] == ranking)


@pytest.mark.parametrize("visits", [2, 5, 8])
def test_it_is_the_correlation_of_odd_and_even_visits(visits):
    x = np.random.default_rng(0).normal(size=(visits, 30)) + np.linspace(-1, 1, 30)
    labels = np.arange(30) % 3
    found = row(agreements(table(x), ["all"], labels), "normalised")
    odd, even = x[::2].mean(0), x[1::2].mean(0)
    assert found["another_training"] == pytest.approx(np.corrcoef(odd, even)[0, 1])
    for half in (odd, even):
        for k in range(3):
            half[labels == k] -= half[labels == k].mean()
    assert found["within_labels"] == pytest.approx(np.corrcoef(odd, even)[0, 1])


def test_what_labels_decide_lies_between_them():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 4
    x = 3.0 * labels + rng.normal(size=(4, 200))
    found = agreements(table(x), ["all"], labels)
    one = row(found, "total")
    assert one["another_training"] > 0.9 > 0.3 > abs(one["within_labels"])
    assert 0.9 < one["between_labels"] < 1
    assert "lies between labels" in str(found)


def test_it_says_what_another_training_of_the_same_kind_shows():
    """Independent visits: below what a second training shows, since halves have half of them."""
    rng = np.random.default_rng(2)
    own = rng.normal(size=400)
    first, second = (own + 2 * rng.normal(size=(8, 400)) for _ in range(2))
    stated = row(agreements(table(first), ["all"]), "normalised")["another_training"]
    real = np.corrcoef(first.mean(0), second.mean(0))[0, 1]
    assert real - 0.25 < stated < real


def test_harm_to_targets_compares_early_and_late_visits_from_eight_on():
    rng = np.random.default_rng(3)
    for visits, known in ((7, False), (8, True)):
        parts = {name: rng.normal(size=(visits, 40)) for name in ("a", "b")}
        found = row(agreements(table(sum(parts.values()), parts), ["a", "b"]), "harm")
        assert (found["another_training"] is not None) == known


def test_single_visits_tell_nothing():
    found = agreements(table(np.random.default_rng(4).normal(size=(1, 20))), ["all"])
    assert row(found, "normalised")["another_training"] is None
    assert "not known" in found.sentences()[0]


def test_a_stored_run_answers(tmp_path):
    run = random_run(tmp_path / "run", 12, targets=("x", "y"))
    run.describe({"sample_id": list(range(12)), "label": ["a", "b"] * 6})
    found = inrun.agreement(run)
    assert found.table["ranking"].to_pylist() == ["normalised", "total", "harm"]
    assert "an audit measures it" in str(found)


def test_halves_of_the_validation_rows_are_correlated_as_they_are():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, 4, 30)) + np.linspace(-1, 1, 30)
    found = agreements(table(first + second, {HALF: first}), ["all"])
    total = np.corrcoef(first.sum(0), second.sum(0))[0, 1]
    assert row(found, "total")["validation_halves"] == pytest.approx(total)
    unit = [sum(x / np.abs(x).mean() for x in half) for half in (first, second)]
    normalised = np.corrcoef(*unit)[0, 1]
    assert row(found, "normalised")["validation_halves"] == pytest.approx(normalised)
    assert row(found, "normalised")["halves_within_labels"] is None
    unknown = agreements(table(first + second, {HALF: first * np.nan}), ["all"])
    assert row(unknown, "total")["validation_halves"] is None
