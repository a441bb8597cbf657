"""Values against exact Shapley values: every coalition a real AdamW step and a real loss."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch

from inrun.ledger import residual_shares
from tests.integration.runs import RUNS, Run, agreement

STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20)
PLAYED = {name: {} for name in RUNS}


@cache
def result(name, estimator, game, capture="hold"):
    """({step: R}, residuals from step 5 on)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, run = agreement(name, estimator, game, STEPS, capture=capture, played=PLAYED[name])
    residuals = residual_shares(run.attribution.ledger())[4:]
    return {step: r for step, r, _ in found}, residuals


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("estimator", "game"), [("path", "shared"), ("path-given", "given")])
def test_values_are_shapley_values(name, estimator, game):
    r, _ = result(name, estimator, game)
    later = [value for step, value in r.items() if step >= 5]
    assert np.median(later) >= 0.999, r
    from_three = [value for step, value in r.items() if step >= 3]
    assert sum(value < 0.99 for value in from_three) <= 1, r  # of nine checked steps
    assert min(from_three) >= 0.93, r


@pytest.mark.parametrize("name", RUNS)
def test_first_steps_are_smoothed_and_right(name):
    """A straight path misses the corner of Adam's sign-like first steps; smoothing does not."""
    r, _ = result(name, "path", "shared")
    assert min(r[1], r[2]) >= 0.96, r


@pytest.mark.parametrize("name", RUNS)
def test_stream_is_nearly_exact(name):
    r, _ = result(name, "path", "shared", "stream")
    assert np.median([value for step, value in r.items() if step >= 5]) >= 0.99, r


def test_books_close():
    pooled = []
    for name in RUNS:
        _, residuals = result(name, "path", "shared")
        assert residuals.max() <= 0.05, (name, residuals)
        pooled.append(residuals)
    assert np.median(np.concatenate(pooled)) <= 0.01


def test_the_ledger_says_which_estimator_was_used():
    _, run = agreement("mlp", "path", "shared", (5,), smoothed_steps=3)
    assert run.attribution.ledger()["estimator"].to_pylist() == ["path-smoothed"] * 3 + ["path"] * 2


def test_sgd_values_are_exact_for_small_sgd_steps():
    """With plain SGD and a small step every estimator is the same first-order game."""

    def plain(model):
        return torch.optim.SGD(model.parameters(), lr=1e-4)

    for estimator in ("sgd", "sgd-second", "linearized", "tangent", "path", "path-given"):
        run = Run("mlp", estimator, optimizer=plain)
        values, truth = run.step("given")
        torch.testing.assert_close(values, truth, rtol=2e-3, atol=1e-9)


def test_second_order_beats_first_order_for_large_sgd_steps():
    def plain(model):
        return torch.optim.SGD(model.parameters(), lr=1.0)

    errors = {}
    for estimator in ("sgd", "sgd-second", "path"):
        values, truth = Run("mlp", estimator, optimizer=plain).step("given")
        errors[estimator] = float((values - truth).norm())
    assert errors["sgd-second"] < 0.5 * errors["sgd"], errors
    assert errors["path"] < 0.5 * errors["sgd"], errors
