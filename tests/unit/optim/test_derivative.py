"""A step's derivative is autograd's, forward and backward, on grids of settings."""

import pytest
import torch

from inrun.errors import NotSupportedError
from inrun.optim import Along, Move, derivative_of, joined, moves, rule_for
from tests.unit.optim.optimizers import (
    ADAMS,
    AVERAGED,
    KIN,
    MATRIX,
    SECOND_MOMENTS,
    SGDS,
    SIGNS,
    Case,
    give_gradients,
    optimizer_of,
)


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


OTHERS = [*KIN, *SECOND_MOMENTS, *AVERAGED, *MATRIX]


def flat_parts(along, move):
    """Each part cut to the size of what it belongs to."""
    sizes = [move.weight.numel(), *(t.numel() for t in tensors(move.state) if t.ndim)]
    parts = (along.weight, *along.moments)
    return [part.reshape(-1)[:size] for part, size in zip(parts, sizes, strict=True)]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_push_of_other_rules_is_central_differences_and_pull_its_transpose(case):
    generator, eps = torch.Generator().manual_seed(5), 1e-6
    for move in steps_of(case)[-2:]:
        derivative = derivative_of(move.rule)
        before, dg = draw(move, derivative, generator)
        after, _ = draw(move, derivative, generator)
        moments = [t for t in tensors(move.state) if t.ndim]
        start = [move.weight, move.gradient, *moments]
        change = [before.weight, dg, *before.moments]
        along = [c.reshape(-1)[: t.numel()].reshape(t.shape) * t.abs().clamp(max=1)
                 for c, t in zip(change, start, strict=True)]  # fmt: skip

        def stepped(sign, move=move, start=start, along=along):
            w, g, *rest = (t + sign * eps * d for t, d in zip(start, along, strict=True))
            state, rest = list(move.state), iter(rest)
            state = [next(rest) if torch.is_tensor(t) and t.ndim else t for t in state]
            state = type(move.state)(*state)
            ahead = move.rule.advance(g, w, state, move.setting)
            moved = move.rule.smooth_displacement(g, w, state, move.setting)
            return [w - moved, *(t for t in tensors(ahead) if t.ndim)]

        up, down = stepped(1), stepped(-1)
        wanted = [((a - b) / (2 * eps)).reshape(-1) for a, b in zip(up, down, strict=True)]
        pad = [torch.zeros(move.weight.numel()).double() for _ in along]
        for room, part in zip(pad, along, strict=True):
            room[: part.numel()] = part.reshape(-1)
        shape = move.weight.shape
        padded = [room.reshape(shape) for room in pad]
        pushed = derivative.push(move, Along(padded[0], tuple(padded[2:])), padded[1])
        for want, have in zip(wanted, flat_parts(pushed, move), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))

        pulled, q = derivative.pull(move, after)
        left = sum((a * b.reshape(-1)[: a.numel()]).sum() for a, b in zip(
            flat_parts(pulled, move), [padded[0], *padded[2:]], strict=True))  # fmt: skip
        left = left + (q * padded[1]).sum()
        right = sum((a * b).sum() for a, b in zip(
            flat_parts(pushed, move), flat_parts(after, move), strict=True))  # fmt: skip
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", SIGNS, ids=lambda case: case.name)
def test_a_rule_that_jumps_has_no_derivative(case):
    _, optimizer = optimizer_of(case)
    with pytest.raises(NotSupportedError, match="steps by signs"):
        derivative_of(rule_for(optimizer))


@pytest.mark.parametrize("case", ADAMS + SGDS, ids=str)
def test_a_carried_change_is_the_difference_of_two_real_steps(case):
    """Also where it would take a second moment below 0, which it cannot."""
    generator = torch.Generator().manual_seed(3)
    for move in steps_of(case)[len(steps_of(case, 1)) :]:
        derivative = derivative_of(move.rule)
        change = draw(move, derivative, generator)[0].moments
        found = derivative.carried(move, change)
        new = derivative.moved(derivative.shifted(move, change), move.gradient)
        old = derivative.moved(move, move.gradient)
        for a, b, c in zip((found.weight, *found.moments), (new.weight, *new.moments),
                           (old.weight, *old.moments), strict=True):  # fmt: skip
            torch.testing.assert_close(a, b - c, rtol=1e-9, atol=1e-12)
