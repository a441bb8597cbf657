"""A step's derivative is autograd's, forward and backward, on grids of settings."""

import pytest
import torch

from inrun.errors import NotSupportedError
from inrun.optim import Along, Move, derivative_of, joined, moves, rule_for
from tests.unit.optimizers import ADAMS, SGDS, Case, give_gradients, optimizer_of


def steps_of(case, count=5):
    """Every move of a short run, copied."""
    params, optimizer = optimizer_of(case)
    rule, found = rule_for(optimizer), []
    for step in range(count):
        give_gradients(params, step)
        found += [move.frozen() for _, move in moves(optimizer, rule)]
        optimizer.step()
    return found


def tensors(state):
    return [t for t in state if isinstance(t, torch.Tensor)]


def as_function(move):
    """(w, g, *moments) -> (w', *moments') through the rule's own formulas."""
    places = [i for i, t in enumerate(move.state) if isinstance(t, torch.Tensor)]

    def step(w, g, *moments):
        parts = list(move.state)
        for place, moment in zip(places, moments, strict=True):
            parts[place] = moment
        state = type(move.state)(*parts)
        after = move.rule.advance(g, w, state, move.setting)
        return w - move.rule.displacement(g, w, state, move.setting), *tensors(after)

    return step


def draw(move, derivative, generator):
    like = lambda: torch.randn(move.weight.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Along(like(), tuple(like() for _ in range(derivative.moments(move)))), like()


def touched(move):
    """Elements at which the step is differentiable: not those that had no gradient ever."""
    second = getattr(move.rule.advance(
        move.gradient, move.weight, move.state, move.setting), "v", torch.ones(()))  # fmt: skip
    return (second != 0).expand(move.weight.shape)


@pytest.mark.parametrize("case", SGDS + ADAMS, ids=lambda case: case.name)
def test_pull_is_autograds_and_push_is_its_transpose(case):
    generator = torch.Generator().manual_seed(5)
    for move in steps_of(case):
        derivative = derivative_of(move.rule)
        after, _ = draw(move, derivative, generator)
        before, dg = draw(move, derivative, generator)
        pulled, q = derivative.pull(move, after)
        smooth = touched(move)

        inputs = [move.weight, move.gradient, *tensors(move.state)]
        inputs = [t.clone().requires_grad_() for t in inputs]
        results = as_function(move)(*inputs)
        objective = sum(
            (a[smooth] * y[smooth]).sum()
            for a, y in zip((after.weight, *after.moments), results, strict=True)
        )
        wanted = torch.autograd.grad(objective, inputs, allow_unused=True, materialize_grads=True)
        found = [pulled.weight, q, *pulled.moments]
        for want, have in zip(wanted, found, strict=False):  # no buffer before SGD's first step
            torch.testing.assert_close(have[smooth], want[smooth], rtol=1e-9, atol=1e-13)

        pushed = derivative.push(move, before, dg)
        along = (before.weight * pulled.weight).sum() + (dg * q).sum()
        along += sum((a * b).sum() for a, b in zip(before.moments, pulled.moments, strict=True))
        across = (pushed.weight * after.weight).sum()
        across += sum((a * b).sum() for a, b in zip(pushed.moments, after.moments, strict=True))
        torch.testing.assert_close(along, across, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", SGDS + ADAMS, ids=lambda case: case.name)
def test_moved_is_the_real_step(case):
    for move in steps_of(case):
        found = derivative_of(move.rule).moved(move, move.gradient)
        wanted = as_function(move)(move.weight, move.gradient, *tensors(move.state))
        for a, b in zip((move.weight + found.weight, *found.moments), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_what_nothing_touched_carries_nothing():
    params, optimizer = optimizer_of(Case(torch.optim.AdamW, {"weight_decay": 0.0}))
    for p in params:
        p.grad = torch.zeros_like(p)
    for _, move in moves(optimizer, rule_for(optimizer)):
        derivative = derivative_of(move.rule)
        ones = torch.ones_like(move.weight)
        before, q = derivative.pull(move, Along(ones, (0 * ones, 0 * ones)))
        assert q.abs().max() == 0
        torch.testing.assert_close(before.weight, ones)


def test_joined_moves_pull_alike():
    *_, p, q = steps_of(Case(torch.optim.AdamW, {}))
    q = Move(q.rule, q.weight, q.gradient, q.state, p.setting)
    derivative, both = derivative_of(p.rule), joined([p, q])
    draws = [draw(m, derivative, torch.Generator().manual_seed(1))[0] for m in (p, q)]
    flat = Along(
        torch.cat([d.weight.reshape(-1) for d in draws]),
        tuple(torch.cat([d.moments[i].reshape(-1) for d in draws]) for i in range(2)),
    )
    _, found = derivative.pull(both, flat)
    wanted = [derivative.pull(m, d)[1].reshape(-1) for m, d in zip((p, q), draws, strict=True)]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-14, atol=0)


def test_a_rule_without_derivative_is_refused():
    with pytest.raises(NotSupportedError, match="derivative of its step"):
        derivative_of(object())
