"""Steps of Adam that compiled passes are tried on: elements of all kinds, made up."""

import torch

from inrun.directions import Gradients
from inrun.optim import AdamRule, AdamSetting, AdamState, Move

SHAPE = (37, 211)  # of no round number, so that parts and blocks end unevenly
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


def setting(**changed):
    plain = AdamSetting(1e-3, 0.9, 0.999, 1e-8, decay=0.0, apart=0.0, maximize=False)
    return plain._replace(**changed)


def adam_move(dtype, steps, h, shape=SHAPE):
    """A parameter with elements of all kinds: well known, new, never touched, gone quiet."""
    generator = torch.Generator().manual_seed(steps)
    draw = lambda: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    g, w, m = draw() * 1e-3, draw(), draw() * 1e-3
    v = (draw() * 1e-3).square() + (1 - h.b2) * g.square()
    kind = torch.randint(0, 4, shape, generator=generator)
    g[kind == 0] = 0
    v[kind == 1] = (1 - h.b2) * g[kind == 1].square()
    m[kind == 1] = (-1 if h.maximize else 1) * (1 - h.b1) * g[kind == 1]
    for t in (g, m, v):
        t[:3] = 0
    state = AdamState(m.to(dtype), v.to(dtype), None, steps)
    rule = AdamRule(decoupled=True)
    return Move(rule, w.to(dtype), g.to(dtype), state, h)


def terms(move, scale=1.0):
    """(slope, momentum, decay) told from the state after the step."""
    told = move.rule.post_step
    arrays = move.gradient, move.weight, *told.arrays(move.state)
    return told.terms(*arrays, told.numbers(move.state, move.setting, scale))


def settles(move):
    """Whether they can be told, asked before the step."""
    told = move.rule.post_step
    return told is not None and told.defined(move.state, move.setting)


def validation(K, dtype, shape=SHAPE):
    generator = torch.Generator().manual_seed(9)
    return Gradients(*(torch.randn(K, *shape, generator=generator).to(dtype) for _ in range(2)))


def settling_is_alike(move, at, found, books, want):
    """Directions to rounding, and what momentum and decay did, for as many targets."""
    close, size = TOLERANCE[move.weight.dtype], want.direction.abs().max()
    assert float((found.direction - want.direction).abs().max() / size) < close
    assert books.direction is None
    for a, b in ((found, want), (books, want)):
        for name in ("momentum", "decay"):
            terms = move.weight.numel() ** 0.5 * float(size)
            difference = (getattr(a, name) - getattr(b, name)).abs().max()
            assert getattr(a, name).shape == (len(at.opening),)
            assert getattr(a, name).dtype == torch.float64
            assert float(difference) < 100 * close * max(terms, 1e-12)


def slope_is_alike(found, want):
    assert bool((found == 0).eq(want == 0).all())
    # its two terms may nearly cancel
    atol = 10 * torch.finfo(want.dtype).eps * float(want.abs().max())
    torch.testing.assert_close(found, want, rtol=TOLERANCE[want.dtype], atol=atol)
