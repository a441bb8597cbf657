"""Each rule is the real optimizer's step to rounding, over grids of its settings."""

import itertools

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from inrun.errors import MisuseError, NotSupportedError
from inrun.optim import moves, rule_for

SGDS = [
    (SGD, {"momentum": mu, "dampening": tau, "nesterov": nag, "weight_decay": wd, "maximize": mx})
    for mu, tau, nag, wd, mx in itertools.product(
        (0.0, 0.9), (0.0, 0.3), (False, True), (0.0, 0.1), (False, True)
    )
    if not (nag and (mu == 0 or tau != 0))
]
ADAMS = [
    (kind, {"amsgrad": ams, "maximize": mx, "weight_decay": wd, "betas": betas})
    for kind, ams, mx, wd, betas in itertools.product(
        (Adam, AdamW), (False, True), (False, True), (0.0, 0.1), ((0.9, 0.999), (0.8, 0.95))
    )
]
IMPLEMENTATIONS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def name(case):
    kind, setting = case
    return kind.__name__ + "-" + "-".join(f"{k}={v}" for k, v in setting.items() if v)


def optimizer_of(kind, setting, dtype=torch.float64, lr=0.01, **how):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7, 3, dtype=dtype))
    q = torch.nn.Parameter(torch.randn(5, dtype=dtype))
    groups = [{"params": [p]}, {"params": [q], "lr": 3 * lr}]
    return [p, q], kind(groups, lr=lr, **setting, **how)


def give_gradients(params, step):
    """Gradients that shrink and vanish here and there, so that amsgrad's maximum matters."""
    for p in params:
        p.grad = torch.randn_like(p) * (0.3**step if step % 3 else 1.0)
        p.grad.view(-1)[step % 4] = 0.0


@pytest.mark.parametrize("case", SGDS + ADAMS, ids=name)
def test_displacement_is_the_real_step(case):
    kind, setting = case
    for how in IMPLEMENTATIONS:
        params, optimizer = optimizer_of(kind, setting, **how)
        rule = rule_for(optimizer)
        for step in range(8):
            give_gradients(params, step)
            expected = [
                p.detach() - move.displacement(move.gradient) for p, move in moves(optimizer, rule)
            ]
            optimizer.step()
            for p, want in zip(params, expected, strict=True):
                torch.testing.assert_close(p.detach(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", SGDS + ADAMS, ids=name)
def test_advance_is_the_real_state(case):
    kind, setting = case
    params, optimizer = optimizer_of(kind, setting)
    rule = rule_for(optimizer)
    for step in range(5):
        give_gradients(params, step)
        expected = [
            (rule.advance(move.gradient, move.weight, move.state, move.setting))
            for _, move in moves(optimizer, rule)
        ]
        optimizer.step()
        found = [
            rule.read(group, optimizer.state[group["params"][0]], group["params"][0])[0]
            for group in optimizer.param_groups
        ]
        for want, have in zip(expected, found, strict=True):
            for a, b in zip(want, have, strict=True):
                if isinstance(a, torch.Tensor):
                    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
                else:
                    assert a == b


@pytest.mark.parametrize("case", SGDS + ADAMS, ids=name)
def test_slope_history_and_tangent_are_what_they_say(case):
    kind, setting = case
    params, optimizer = optimizer_of(kind, setting)
    rule = rule_for(optimizer)
    for step in range(6):
        give_gradients(params, step)
        for _, move in moves(optimizer, rule):
            g, nothing = move.gradient, torch.zeros_like(move.gradient)
            history = move.history()
            at_rest = move.displacement(nothing)
            torch.testing.assert_close(
                nothing + history.momentum + history.decay, at_rest, rtol=1e-12, atol=1e-14
            )
            torch.testing.assert_close(
                move.slope().along(g), move.displacement(g) - at_rest, rtol=1e-9, atol=1e-13
            )
            probe = g.clone().requires_grad_()
            (tangent,) = torch.autograd.grad(move.displacement(probe).sum(), probe)
            smooth = torch.isfinite(tangent) & (g != 0)  # |g| has a corner in the first step
            torch.testing.assert_close(
                move.tangent().along(torch.ones_like(g))[smooth],
                tangent[smooth],
                rtol=1e-8,
                atol=1e-12,
            )
        optimizer.step()


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_slope_without_gradient_is_the_tangent_of_the_null_update(kind):
    params, optimizer = optimizer_of(kind, {})
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
    params, optimizer = optimizer_of(AdamW, {})
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


def test_float32_slope_does_not_cancel():
    """The quotient (d(g) - d(0)) / g loses its digits for small g; the slope does not."""
    params, optimizer = optimizer_of(AdamW, {}, dtype=torch.float32)
    give_gradients(params, 0)
    optimizer.step()
    params[0].grad = torch.full_like(params[0], 1e-9)
    params[1].grad = None
    ((_, move),) = moves(optimizer, rule_for(optimizer))
    wide = type(move.state)(move.state.m.double(), move.state.v.double(), None, move.state.steps)
    exact = move.rule.slope(move.gradient.double(), move.weight.double(), wide, move.setting)
    torch.testing.assert_close(
        move.slope().coefficient.double(), exact.coefficient, rtol=1e-5, atol=0
    )


def test_a_parameter_without_gradient_does_not_move():
    params, optimizer = optimizer_of(AdamW, {})
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
    with pytest.raises(NotSupportedError, match=r"Adagrad has no update rule here.*SGD, Adam"):
        rule_for(torch.optim.Adagrad([p]))
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
