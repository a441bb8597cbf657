"""Orders of samples, and the confidence over visits."""

import numpy as np
import pytest

from inrun.uses import rank
from inrun.uses._ranking import PRIOR, confidence
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
