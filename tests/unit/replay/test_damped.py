"""Look-ahead through Adam's steps where a first gradient comes out next to 0, float64."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import inrun
from inrun.optim import AdamState, Along, Move, derivative_of
from tests.unit.optim.adam_moves import setting
from tests.unit.optim.test_derivative import ADAMS, steps_of
from tests.unit.replay.test_lookahead import momentum, recorded, training, utility, values_of

SQUARE = 0.09


def mean_of_signs(gradient):
    """Of gradient + d over changes d with density SQUARE / (2 (d^2 + SQUARE)^(3/2))."""
    density = lambda d: SQUARE / (2 * (d * d + SQUARE) ** 1.5)  # noqa: E731
    positive, _ = quad(density, -gradient, np.inf, epsabs=1e-13, epsrel=1e-13)
    negative, _ = quad(density, -np.inf, -gradient, epsabs=1e-13, epsrel=1e-13)
    return positive - negative


@pytest.mark.parametrize("amsgrad", [False, True])
def test_in_adams_first_step_it_is_the_slope_of_the_mean_sign(amsgrad):
    gradients = torch.tensor([-1.0, -0.2, 1e-9, 0.05, 0.3, 2.0], dtype=torch.float64)
    zero = torch.zeros_like(gradients)
    state = AdamState(zero, zero, zero if amsgrad else None, 0)
    rule, h = steps_of(ADAMS[0])[0].rule, setting(eps=1e-30)
    move = Move(rule, zero, gradients, state, h)
    derivative = derivative_of(rule)
    after = Along(torch.ones_like(zero), tuple(zero for _ in range(derivative.moments(move))))
    _, found = derivative.pull(derivative.damped(move, torch.full_like(zero, SQUARE)), after)
    step = 1e-4
    wanted = [
        -h.lr * (mean_of_signs(g + step) - mean_of_signs(g - step)) / (2 * step)
        for g in gradients.tolist()
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("case", ADAMS, ids=lambda case: case.name)
def test_without_a_likely_change_it_is_the_exact_derivative(case):
    generator = torch.Generator().manual_seed(5)
    for move in steps_of(case):
        derivative = derivative_of(move.rule)
        like = lambda: torch.randn(move.weight.shape, generator=generator).double()  # noqa: B023, E731
        after = Along(like(), tuple(like() for _ in range(derivative.moments(move))))
        damped = derivative.damped(move, torch.zeros_like(move.gradient))
        (exact, q), (found, p) = derivative.pull(move, after), derivative.pull(damped, after)
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
        for a, b in zip(found.moments, exact.moments, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


X = torch.tensor([[1, 1], [1, 0], [-1, 1], [-1, 0], [2, 1], [1, -1], [0, 2], [1, 1]]).double()
Y = torch.tensor(
    [1 + 1e-9, -1, 0.5, -0.5, 1, 0.5, -1, 1.5], dtype=torch.float64
)  # the first four cancel


def losses(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square() / len(batch[0])


def fetch(ids):
    return X[torch.as_tensor(ids)], Y[torch.as_tensor(ids)]


def cancelling():
    """A run whose first gradient of one weight is 5e-10, where each row's own is about 1."""
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    recorder = inrun.record(model, optimizer, losses, fetch)
    for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]):
        with recorder.batch(ids):
            losses(model, fetch(ids)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return recorder.finish()


def test_a_first_gradient_next_to_0_does_not_blow_values_up():
    run, rows = cancelling(), [0, 1, 2, 3]
    judged = inrun.Utility(
        lambda model, batch: losses(model, batch).sum(), (torch.eye(2).double(), Y[4:6])
    )
    truth = np.array(inrun.truth.retrain(run, judged, rows)["value"])
    exact = values_of(inrun.lookahead(run, judged, damped=False), rows)
    found = values_of(inrun.lookahead(run, judged), rows)
    largest = np.abs(truth).max()
    assert np.abs(exact).max() > 1e4 * largest
    assert np.abs(found - truth).max() < 0.5 * largest
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_sgd_has_nothing_to_damp():
    train = training("mlp", momentum, clip=0.3, blocks=2)
    run = recorded(train)
    for push in ("tangent", "finite"):
        damped, exact = (
            values_of(inrun.lookahead(run, utility(train), push=push, damped=how), range(12))
            for how in (True, False)
        )
        np.testing.assert_array_equal(damped, exact)
