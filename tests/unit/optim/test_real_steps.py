"""At the edge of their arguments rules are finite and right, against the real optimizer's step."""

import pytest
import torch
from torch import optim

from inrun.optim import moves, rule_for
from tests.unit.optim.optimizers import Case, optimizer_of

EDGES = {
    "eps 0": {"eps": 0.0},
    "betas 0": {"betas": (0.0, 0.0)},
    "first beta 0": {"betas": (0.0, 0.999)},
    "second beta 0": {"betas": (0.9, 0.0)},
    "lr 0": {"lr": 0.0},
    "huge decay": {"weight_decay": 50.0},
    "eps 0, betas 0": {"eps": 0.0, "betas": (0.0, 0.0)},
    "decay eats all": {"weight_decay": 100.0, "lr": 0.01},
}
KINDS = [
    optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.SGD, optim.ASGD, optim.Rprop,
]  # fmt: skip
AMSGRAD = {optim.Adam, optim.AdamW}


def cases():
    for kind in KINDS:
        for edge, options in EDGES.items():
            for amsgrad in (False, True) if kind in AMSGRAD else (False,):
                with_it = {**options, "amsgrad": True} if amsgrad else options
                try:
                    Case(kind, with_it).build([torch.nn.Parameter(torch.zeros(2))])
                except (TypeError, ValueError):
                    continue  # it has no such argument, or refuses the value
                yield pytest.param(kind, with_it, id=f"{kind.__name__}-{edge}-{amsgrad}")


def give(params, step, kind):
    """Gradients of which some elements, or all, never or no longer are anything but 0."""
    for p in params:
        g = torch.randn_like(p)
        g.view(-1)[0] = 0.0  # never touched
        g.view(-1)[1] = g.view(-1)[1] if step < 2 else 0.0
        g.view(-1)[2] = 0.0 if step < 2 else g.view(-1)[2]
        if kind == "all 0":
            g.zero_()
        p.grad = g


@pytest.mark.parametrize("gradients", ["some 0", "all 0"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "options"), cases())
def test_rules_are_finite_and_right_at_the_edge(kind, options, dtype, gradients):
    lr = options.get("lr", 0.01)
    rest = {name: value for name, value in options.items() if name != "lr"}
    params, optimizer = optimizer_of(Case(kind, rest), dtype, lr=lr)
    rule = rule_for(optimizer)
    close = 1e-12 if dtype == torch.float64 else 2e-5
    for step in range(5):
        give(params, step, gradients)
        before = [p.detach().clone() for p in params]
        now = [move for _, move in moves(optimizer, rule)]
        told = [
            (m.slope().along(m.gradient), m.history(), m.tangent().along(m.gradient),
             m.displacement(m.gradient), m.displacement(torch.zeros_like(m.gradient)),
             m.slope().coefficient)
            for m in now
        ]  # fmt: skip
        optimizer.step()
        for p, was, (along, history, tangent, whole, none, slope) in zip(
            params, before, told, strict=True
        ):
            real = was - p.detach()
            right = real.isfinite()
            for found in (along, tangent, whole, none, slope, *history):
                assert torch.as_tensor(found).isfinite().all()
            size = float(real[right].abs().max()) if right.any() else 0.0
            scale = close * max(1.0, size, float(was.abs().max()))
            torch.testing.assert_close(whole[right], real[right], rtol=close, atol=scale)
            summed = (along + sum(torch.as_tensor(h) for h in history))[right]
            largest = max(float(torch.as_tensor(t).abs().max()) for t in (along, *history))
            torch.testing.assert_close(
                summed, real[right], rtol=close, atol=10 * close * max(largest, scale / close)
            )
            with torch.no_grad():
                p[~right] = was[~right]  # the real one made 0 / 0 of them
