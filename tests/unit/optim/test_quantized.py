"""Adam with moments in few bits: real optimizers of other packages, on the CPU."""

import warnings

import bitsandbytes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchao.optim
from torch import nn

import inrun
from inrun.errors import NotSupportedError
from inrun.optim import derivative_of, moves, rule_for

KINDS = [
    torchao.optim.AdamW8bit,
    torchao.optim.Adam8bit,
    torchao.optim.AdamW4bit,
    torchao.optim.AdamWFp8,
    bitsandbytes.optim.AdamW8bit,
    bitsandbytes.optim.Adam8bit,
    bitsandbytes.optim.AdamW,
    bitsandbytes.optim.PagedAdamW8bit,
]


def name(kind):
    return f"{kind.__module__.split('.')[0]}-{getattr(kind, '__name__', '')}"


@pytest.fixture(autouse=True)
def uncompiled():
    """Both packages compile their step, which takes longer than all of it does here."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def parameters(dtype):
    """One that is large enough to be kept in few bits, and one that is not."""
    torch.manual_seed(0)
    return [
        nn.Parameter(torch.randn(64, 80, dtype=dtype)),
        nn.Parameter(torch.randn(30, dtype=dtype)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_the_rule_is_what_the_optimizer_does(kind, dtype):
    trained = parameters(dtype)
    optimizer = kind(trained, lr=1e-2, weight_decay=0.1)
    rule = rule_for(optimizer)
    for _ in range(6):
        for p in trained:
            p.grad = torch.randn_like(p)
        expected = {
            p: (m.weight.float() - m.displacement(m.gradient).float(), m.weight.float().clone())
            for p, m in moves(optimizer, rule)
        }
        optimizer.step()
        for p, (after, before) in expected.items():
            rounding = torch.finfo(dtype).eps * torch.maximum(before.abs(), after.abs())
            wrong = (p.detach().float() - after).abs()
            assert (wrong <= 1e-4 * (after - before).abs() + rounding).all()
            assert ((after - before).abs() > 1e-4).any()


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_moments_really_are_in_few_bits(kind):
    trained = parameters(torch.float32)
    optimizer = kind(trained, lr=1e-2)
    for p in trained:
        p.grad = torch.randn_like(p)
    optimizer.step()
    rule = rule_for(optimizer)
    large, small = (move.state for _, move in moves(optimizer, rule))
    if "bit" in kind.__name__.lower() or "Fp8" in kind.__name__:
        assert len(large.m.unique()) < large.m.numel() / 2
    assert len(small.m.unique()) == small.m.numel()


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_values_are_those_of_the_real_steps_played_out(kind):
    torch.manual_seed(0)
    x, y = torch.randn(80, 64), torch.randint(4, (80,))
    model = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 4))
    optimizer = kind(model.parameters(), lr=2e-3)
    utility = inrun.Utility(lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x[40:], y[40:]))
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    audit = attribution.audit(seconds=1e6, steps=8, groups=3)
    for step in range(8):
        ids = torch.arange(5) + 5 * step
        with attribution.batch(ids):
            F.cross_entropy(model(x[ids]), y[ids]).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    assert attribution.residual_share < 0.02
    checked = audit.table()["pearson"].to_numpy()
    assert len(checked) == 8
    assert np.median(checked) > 0.99


def test_what_needs_the_rounded_state_is_refused():
    optimizer = bitsandbytes.optim.AdamW8bit(parameters(torch.float32))
    with pytest.raises(NotSupportedError, match="rounds"):
        derivative_of(rule_for(optimizer))
    optimizer.args.max_unorm = 0.5
    with pytest.raises(NotSupportedError, match="max_unorm"):
        rule_for(optimizer)
    with pytest.raises(NotSupportedError, match="torchao and bitsandbytes"):
        rule_for(bitsandbytes.optim.Lion8bit(parameters(torch.float32)))


EDGES = [
    {"betas": (0.0, 0.0)}, {"betas": (0.9, 0.0)}, {"betas": (0.0, 0.999)}, {"eps": 0.0},
    {"eps": 1e-30}, {"lr": 0.0}, {"weight_decay": 1e4}, {"eps": 0.0, "weight_decay": 1e4},
]  # fmt: skip
HALF = [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD]


def gradients(step, p):
    """Rows that nothing touches, that are touched once, that stay; nothing at all in the third."""
    g = torch.randn_like(p)
    g[:3] = 0.0
    g[3:6] *= step == 0
    return g * (step != 2)


def played(kind, options, dtype):
    """(real displacement, move before the step, rounding of weights) as the optimizer goes."""
    trained = parameters(dtype)
    optimizer = kind(trained, **{"lr": 1e-2, "weight_decay": 0.0, **options})
    rule = rule_for(optimizer)
    for step in range(4):
        for p in trained:
            p.grad = gradients(step, p)
        read = [(p, p.detach().float().clone(), m.frozen()) for p, m in moves(optimizer, rule)]
        optimizer.step()
        for p, before, move in read:
            after = p.detach().float()
            sizes = torch.maximum(before.abs(), after.abs())
            yield before - after, move, 2 * torch.finfo(dtype).eps * sizes
            with torch.no_grad():  # a weight that is no number is the optimizer's own doing
                p.copy_(torch.where(torch.isfinite(p) & (p.abs() < 1e6), p, torch.ones_like(p)))


def assert_right(real, move, rounding, rtol):
    """The rule's displacement is the real one, and its parts add up to it; all are finite."""
    told = move.displacement(move.gradient).float()
    sound = torch.isfinite(real)
    assert torch.isfinite(told).all()
    assert ((told - real).abs() <= rtol * real.abs() + rounding)[sound].all()
    history = move.history()
    null = (history.momentum + history.decay + torch.zeros_like(told)).float()
    along = move.slope().along(move.gradient).float()
    assert torch.isfinite(null).all()
    assert torch.isfinite(along).all()
    sizes = sum(torch.as_tensor(part).abs() for part in history) + along.abs() + told.abs()
    assert ((null + along - told).abs() <= rtol * sizes + rounding)[sound].all()


@pytest.mark.parametrize("options", EDGES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_rules_of_few_bits_are_finite_and_right_at_the_edge(kind, options):
    for real, move, rounding in played(kind, options, torch.float32):
        assert_right(real, move, rounding, 1e-4)


@pytest.mark.parametrize("options", EDGES, ids=str)
@pytest.mark.parametrize("kind", HALF, ids=name)
def test_moments_in_bfloat16_are_finite_and_right_at_the_edge(kind, options):
    if kind is torch.optim.SGD:
        options = {k: v for k, v in options.items() if k in ("lr", "weight_decay")}
        options["momentum"] = 0.9
    elif kind is torch.optim.RMSprop and "betas" in options:
        options = {"momentum": options["betas"][0], "alpha": options["betas"][1]}
    for real, move, rounding in played(kind, options, torch.bfloat16):
        assert_right(real, move, rounding, 0.05)
