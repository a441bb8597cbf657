"""The factor between a block's gradients and the step's: one number where there is one."""

import math

import pytest
import torch

from inrun.capture._measured import Measured
from inrun.capture._probe import Probe
from inrun.capture._scaling import Change, factors

CLOSE = 1e-4


def change(before, after, direction, close=CLOSE):
    mark, now = (Measured(float(g @ direction), float(g.norm())) for g in (before, after))
    return Change(mark, now, close)


def gradients(count, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(size, generator=generator).double()

    return [(draw(), draw()) for _ in range(count)]


@pytest.mark.parametrize("k", [1.0, 0.01, -1.0, -3.0, 128.0])
def test_one_factor_for_all_is_found_with_its_sign(k):
    found = factors({f"p{i}": change(g, k * g, r) for i, (g, r) in enumerate(gradients(5))}, 0.0)
    assert len(set(found.values())) == 1
    assert found["p0"] == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("k", [1.0, -1.0])
def test_who_cannot_tell_the_sign_takes_that_of_the_others(k):
    changes = {f"p{i}": change(g, k * g, r) for i, (g, r) in enumerate(gradients(3))}
    blind = torch.tensor([1.0, -1.0]).double()
    changes["blind"] = change(blind, k * blind, torch.ones(2).double())
    assert changes["blind"].sign() == 0
    assert factors(changes, 0.0)["blind"] == pytest.approx(k)


def test_a_sign_that_nobody_tells_is_not_guessed():
    blind = torch.tensor([1.0, -1.0]).double()
    assert factors({"blind": change(blind, -blind, torch.ones(2).double())}, 0.0) == {"blind": None}


def test_who_cannot_tell_does_not_choose_between_two_signs():
    (a, r), (b, s) = gradients(2)
    blind = torch.tensor([1.0, -1.0]).double()
    changes = {"a": change(a, a, r), "b": change(b, -2 * b, s)}
    changes["blind"] = change(blind, 5 * blind, torch.ones(2).double())
    found = factors(changes, 0.0)
    assert found["a"] == pytest.approx(1)
    assert found["b"] == pytest.approx(-2)
    assert found["blind"] is None


def test_factors_that_differ_are_each_its_own():
    pairs = gradients(4)
    found = factors({f"p{i}": change(g, (i - 1.5) * g, r) for i, (g, r) in enumerate(pairs)}, 0.0)
    assert list(found.values()) == pytest.approx([-1.5, -0.5, 0.5, 1.5])


def test_what_is_no_factor_is_none_and_leaves_the_others_theirs():
    (a, r), (b, s), (c, t) = gradients(3)
    changes = {"a": change(a, 2 * a, r), "b": change(b, b.clamp(-0.3, 0.3), s)}
    changes["c"] = change(c, 2 * c, t)
    found = factors(changes, 0.0)
    assert found["b"] is None
    assert found["a"] == found["c"] == pytest.approx(2)


def test_a_gradient_that_is_rounding_goes_with_the_others():
    (a, r), (b, s) = gradients(2)
    changes = {"a": change(a, 0.5 * a, r), "tiny": change(1e-12 * b, 1e-12 * b.flip(0), s)}
    assert factors(changes, 1e-10)["tiny"] == pytest.approx(0.5)


def test_no_gradient_before_and_none_after_is_no_change():
    nothing, (a, r) = torch.zeros(3).double(), gradients(1, 3)[0]
    assert factors({"p": change(nothing, nothing, r)}, 0.0) == {"p": 1.0}
    assert factors({"p": change(nothing, a, r)}, 0.0) == {"p": None}
    assert math.isclose(factors({"p": change(a, nothing, r)}, 0.0)["p"] or 0.0, 0.0)


@pytest.mark.parametrize("k", [1e-3, -1e-4, 1e-6])
def test_a_factor_is_told_of_what_rounds_to_the_smallest_numbers(k):
    half = torch.finfo(torch.float16)
    changes = {}
    for i, (g, r) in enumerate(gradients(5, size=64)):
        g = (10.0**-i * g).half()
        before, after = g.double(), (k * g).half().double()
        least = 1.5 * half.smallest_normal * half.eps * 8
        mark, now = (Measured(float(x @ r), float(x.norm())) for x in (before, after))
        changes[f"p{i}"] = Change(mark, now, 4 * half.eps, least=least)
    found = factors(changes, 0.0)
    assert all(one == pytest.approx(k, rel=0.05) for one in found.values())


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e-9, 1e-3, 1.0, 1e12, 1e25])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5), (2, 20_000), (0, 4)])
def test_a_gradients_norm_is_that_of_double_precision(shape, scale):
    gradient = torch.randn(shape) * scale
    wide = torch.linalg.vector_norm(gradient.double())
    found = Probe(gradient, torch.Generator()).and_norm(gradient)[1]
    torch.testing.assert_close(found, wide, rtol=1e-7, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradients_norm_is_not_finite_where_the_gradient_is_not(bad):
    gradient = torch.ones(3, 4)
    gradient[1, 2] = bad
    assert not Probe(gradient, torch.Generator()).and_norm(gradient)[1].isfinite()
