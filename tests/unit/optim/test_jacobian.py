"""Slopes of rules that are not elementwise, against dense Jacobians by autograd, float64."""

import pytest
import torch

from inrun.optim import gauss_legendre, moves, rule_for
from tests.unit.optim.optimizers import MATRIX

CASES = MATRIX[::7]  # every kind with several settings


def move_at(case, step, *, share=1.0):
    """The move of a matrix parameter after some steps, its gradient times a number."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    optimizer = case.build([p])
    for _ in range(step):
        p.grad = torch.randn_like(p)
        optimizer.step()
    p.grad = share * torch.randn_like(p)
    ((_, move),) = moves(optimizer, rule_for(optimizer))
    return move


def dense(move, g):
    """d'(g) as a matrix (elements of d, elements of g)."""
    found = torch.autograd.functional.jacobian(move.smooth_displacement, g)
    return found.reshape(g.numel(), g.numel())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tangent_is_the_jacobian(case):
    move = move_at(case, 3)
    jacobian, v_K = dense(move, move.gradient), torch.randn(2, 5, 4, dtype=torch.float64)
    pulled_K = move.tangent().transposed(v_K, 0.5)
    expected = 0.5 * (v_K.flatten(1) @ jacobian).reshape(v_K.shape)
    torch.testing.assert_close(pulled_K, expected, rtol=1e-8, atol=1e-12)
    pushed = move.tangent().along(v_K[0])
    torch.testing.assert_close(pushed.flatten(), jacobian @ v_K[0].flatten())


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.options.get("momentum") != 0.0],
    ids=lambda case: case.name,
)
def test_slope_is_the_mean_jacobian(case):
    """By far more nodes than the slope itself has; the gradient is small beside the past.

    Muon without momentum is left out: it jumps at 0, which no number of nodes sees.
    """
    move = move_at(case, 6, share=0.1)
    g, v_K = move.gradient, torch.randn(3, 5, 4, dtype=torch.float64)
    mean = sum(weight * dense(move, alpha * g) for alpha, weight in gauss_legendre(24))
    expected = (v_K.flatten(1) @ mean).reshape(v_K.shape)
    found = move.slope().transposed(v_K)
    size = float(expected.norm())
    assert float((found - expected).norm()) < 0.01 * size
    torch.testing.assert_close(
        (found * g).sum((1, 2)), (v_K * move.slope().along(g)).sum((1, 2)), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("step", [0, 1, 5])
def test_slope_along_the_gradient_is_the_whole_step(case, step):
    """J g = d(g) - d(0), also where d jumps at 0."""
    move = move_at(case, step)
    nothing = torch.zeros_like(move.gradient)
    moved = move.smooth_displacement(move.gradient) - move.smooth_displacement(nothing)
    torch.testing.assert_close(move.slope().along(move.gradient), moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kept_slope_survives_the_step(case):
    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.randn(5, 4))
    optimizer = case.build([p])
    p.grad = torch.randn_like(p)
    optimizer.step()
    v_K = torch.randn(1, 5, 4)
    ((_, move),) = moves(optimizer, rule_for(optimizer))
    kept, before = move.slope().kept(), move.slope().transposed(v_K)
    optimizer.step()
    torch.testing.assert_close(kept.transposed(v_K), before)
