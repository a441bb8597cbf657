"""Each rule is the real optimizer's step to rounding, over grids of its settings."""

import pytest
import torch
from torch.optim import Adam, AdamW

from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import Move, moves, rule_for
from tests.unit.optim.adam_moves import settles, terms
from tests.unit.optim.optimizers import (
    ELEMENTWISE,
    MATRIX,
    SIGN_LIKE,
    Case,
    give_gradients,
    optimizer_of,
)

ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6}
MANY = [*ELEMENTWISE, *MATRIX]
OTHER_WAYS = [{"foreach": True}, {"fused": True}]


def take_steps(case, count, dtype=torch.float64, **how):
    """Yields (parameters, optimizer, rule, moves) before each of so many steps."""
    params, optimizer = optimizer_of(case, dtype, **how)
    rule = rule_for(optimizer)
    for step in range(count):
        give_gradients(params, step)
        yield params, optimizer, rule, [move for _, move in moves(optimizer, rule)]
        optimizer.step()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", MANY, ids=lambda case: case.name)
def test_displacement_is_the_real_step(case, dtype):
    """Twice the gradients' period of 12: warm-ups, averages and RAdam's start are over by then."""
    expected = None
    for params, _, _, now in take_steps(case, 24, dtype):
        if expected is not None:
            for p, want in zip(params, expected, strict=True):
                allowed = ROUNDING[dtype] * max(1.0, float(want.norm()))
                assert float((p.detach() - want).abs().max()) <= allowed
        expected = [move.weight - move.displacement(move.gradient) for move in now]


@pytest.mark.parametrize("how", OTHER_WAYS, ids=str)
@pytest.mark.parametrize("kind", sorted({c.kind for c in MANY}, key=str), ids=lambda k: k.__name__)
def test_every_implementation_of_a_step_is_the_same_rule(kind, how):
    case = [c for c in MANY if c.kind is kind][-1]
    options = {k: v for k, v in case.options.items() if k != "foreach"}
    try:
        optimizer_of(Case(kind, options), **how)
    except (TypeError, RuntimeError):
        pytest.skip(f"{kind.__name__} has no {how}")
    expected = None
    for params, _, _, now in take_steps(Case(kind, options), 8, **how):
        for p, want in zip(params, expected or params, strict=True):
            torch.testing.assert_close(p.detach(), want.detach(), rtol=1e-12, atol=1e-13)
        expected = [move.weight - move.displacement(move.gradient) for move in now]


@pytest.mark.parametrize("case", MANY, ids=lambda case: case.name)
def test_advance_is_the_real_state(case):
    expected = None
    for _, _, _, now in take_steps(case, 12):
        for want, move in zip(expected or [], now, strict=bool(expected)):
            for a, b in zip(want, move.state, strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
                else:
                    assert a == b
        expected = [m.rule.advance(m.gradient, m.weight, m.state, m.setting) for m in now]


@pytest.mark.parametrize("case", MANY, ids=lambda case: case.name)
def test_history_is_the_step_without_gradient_and_decay_its_part(case):
    for _, _, _, now in take_steps(case, 6):
        for move in now:
            nothing = torch.zeros_like(move.gradient)
            history = move.history()
            torch.testing.assert_close(
                nothing + history.momentum + history.decay, move.displacement(nothing),
                rtol=1e-12, atol=1e-14,
            )  # fmt: skip
            if not any(case.options.get(k) for k in ("weight_decay", "lambd")):
                assert not isinstance(history.decay, torch.Tensor) or not history.decay.any()


@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case.name)
def test_slope_and_tangent_are_what_they_say(case):
    for _, _, _, now in take_steps(case, 6):
        for move in now:
            g = move.gradient
            moved = move.displacement(g) - move.displacement(torch.zeros_like(g))
            torch.testing.assert_close(move.slope().along(g), moved, rtol=1e-9, atol=1e-13)
            probe = g.clone().requires_grad_()
            (tangent,) = torch.autograd.grad(move.displacement(probe).sum(), probe)
            found = move.tangent().along(torch.ones_like(g))
            smooth = torch.isfinite(tangent) & (g != 0)  # |g| has a corner in the first step
            torch.testing.assert_close(found[smooth], tangent[smooth], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_slope_without_gradient_is_the_tangent_of_the_null_update(kind):
    params, optimizer = optimizer_of(Case(kind, {}))
    give_gradients(params, 0)
    params[0].grad[0, 0] = 0.0
    optimizer.step()
    give_gradients(params, 0)
    params[0].grad[0] = 0.0
    _, move = next(iter(moves(optimizer, rule_for(optimizer))))
    slope, tangent = move.slope().coefficient, move.tangent().coefficient
    assert slope[0, 0] == 0  # untouched now and before
    torch.testing.assert_close(slope[0, 1:], tangent[0, 1:])
    assert (slope[0, 1:] > 0).all()


def test_linearization_is_the_papers_and_guarded():
    """C / A with A from the previous step's v_hat; 0 where that v is 0."""
    params, optimizer = optimizer_of(Case(AdamW, {}))
    for step in range(3):
        give_gradients(params, step)
        params[0].grad[0, 0] = 0.0
        optimizer.step()
    give_gradients(params, 3)
    rule = rule_for(optimizer)
    p, move = next(iter(moves(optimizer, rule)))
    state, t = optimizer.state[p], 4
    v_hat = state["exp_avg_sq"] / (1 - 0.999 ** (t - 1))
    c, a = (1 - 0.9) / (1 - 0.9**t), v_hat.sqrt() + 1e-8
    expected = torch.where(v_hat == 0, torch.zeros_like(a), 0.01 * c / a)
    torch.testing.assert_close(move.linearization().coefficient, expected)
    momentum = 0.01 * 0.9 * state["exp_avg"] / (1 - 0.9**t) / a
    torch.testing.assert_close(
        move.linearized_history().momentum, torch.where(v_hat == 0, torch.zeros_like(a), momentum)
    )
    assert move.linearization().coefficient[0, 0] == 0


SMOOTH = [case for case in ELEMENTWISE if case not in SIGN_LIKE]


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_float32_slope_does_not_cancel(case):
    """The quotient (d(g) - d(0)) / g loses its digits for small g; the slope does not."""
    for step, (_, _, _, now) in enumerate(take_steps(case, 3, torch.float32)):
        for move in now if step == 2 else ():
            move.gradient.fill_(1e-9)
            wide = move.to(torch.float64)
            found = move.slope().along(torch.ones_like(move.gradient)).double()
            exact = wide.slope().along(torch.ones_like(wide.gradient))
            torch.testing.assert_close(found, exact, rtol=2e-5, atol=0)


def test_a_parameter_without_gradient_does_not_move():
    params, optimizer = optimizer_of(Case(AdamW, {}))
    params[0].grad = torch.ones_like(params[0])
    assert [p is params[0] for p, _ in moves(optimizer, rule_for(optimizer))] == [True]


def test_tensor_learning_rate_and_capturable_are_read():
    p = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
    optimizer = AdamW([p], lr=torch.tensor(0.01, dtype=torch.float64), foreach=False)
    p.grad = torch.ones_like(p)
    ((_, move),) = moves(optimizer, rule_for(optimizer))
    want = p.detach() - move.displacement(move.gradient)
    optimizer.step()
    torch.testing.assert_close(p.detach(), want)


def test_unknown_optimizers_are_refused_by_name():
    p = torch.nn.Parameter(torch.randn(3))
    with pytest.raises(MisuseError, match=r"not a torch\.optim\.Optimizer"):
        rule_for("adam")
    with pytest.raises(NotSupportedError, match="differentiable"):
        rule_for(AdamW([p], differentiable=True))

    class Louder(AdamW):
        def step(self, closure=None):
            return super().step(closure)

    class Renamed(AdamW):
        pass

    with pytest.raises(NotSupportedError, match="Louder"):
        rule_for(Louder([p]))
    assert rule_for(Renamed([p])) is rule_for(AdamW([p]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ELEMENTWISE, ids=lambda case: case.name)
def test_slope_and_history_can_be_told_from_the_state_after_the_step(case, dtype):
    rounding, before = 4 * torch.finfo(dtype).eps ** 0.5, []  # a root's, of what is all new
    for _, _, rule, now in take_steps(case, 12, dtype):
        for (told_after, *told, gradient, setting), after in zip(before, now, strict=bool(before)):
            if told_after:
                slope, *history = terms(
                    Move(rule, after.weight, gradient, after.state, setting), scale=2.0
                )
                found = slope / 2, *history
                for a, b in zip(found, told, strict=True):
                    a, b = torch.as_tensor(a, dtype=dtype), torch.as_tensor(b, dtype=dtype)
                    allowed = rounding * max(1.0, float(b.abs().max()))
                    assert float((a - b).abs().max()) <= allowed
        before = [
            (settles(m), m.slope().coefficient, *m.history(),
             m.gradient.clone(), m.setting)
            for m in now
        ]  # fmt: skip


def test_adam_settles_unless_its_state_does_not_tell():
    for options, told in (({}, True), ({"amsgrad": True}, False), ({"eps": 0.0}, False)):
        for _, _, _, now in take_steps(Case(AdamW, options), 3):
            assert all(settles(m) == told for m in now)
