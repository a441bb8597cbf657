"""Orders of samples, and the confidence over visits."""

import numpy as np
import pytest

from inrun.uses import rank
from inrun.uses._ranking import PRIOR, confidence
from tests.integration.stored import random_run
from tests.oracles import decisions as oracle


@pytest.fixture
def run(labelled_run):
    return labelled_run


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


@pytest.mark.parametrize("epochs", [8, 11])
def test_confidence_is_the_oracles(tmp_path, epochs):
    run, numbers = random_run(tmp_path / "run", 40, epochs=epochs), {}
    for visit in run.visits().to_pylist():
        numbers.setdefault(visit["sample_id"], []).append(visit["value_normalised"])
    wanted = list_of(oracle.confidence(numbers, PRIOR))
    np.testing.assert_allclose(rank(run.visits(), run.targets).confidence, wanted, atol=1e-12)


def test_few_visits_give_no_confidence(tmp_path):
    run = random_run(tmp_path / "run", 20, epochs=7)
    assert np.isnan(rank(run.visits(), run.targets).confidence).all()


def _visits(rng, n, visits, own, shared):
    """A training: each sample's own mean, an error that its whole training shares by halves."""
    halves = own[:, None] + rng.normal(0, shared, (n, 2))
    return (np.repeat(halves, visits // 2, axis=1) + rng.normal(0, 1, (n, visits))).ravel()


def test_of_samples_without_effect_few_are_surely_harmful():
    """Also where the visits of one half of a training err together."""
    rng, n, visits = np.random.default_rng(0), 4000, 8
    row = np.repeat(np.arange(n), visits)
    for shared in (0.0, 1.0):
        sure = confidence(_visits(rng, n, visits, np.zeros(n), shared), row, n)
        assert 0.01 < (sure > 0.95).mean() < 0.06  # heavier tails than there is need for
    shifted = confidence(_visits(rng, n, visits, np.full(n, -4.0), 1.0), row, n)
    assert (shifted > 0.95).mean() > 0.9
