"""Divided differences: the slope times the gradient is the difference, for whatever is written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.errors import NotSupportedError
from inrun.optim._divided import Divided

UNARY = {
    "square": lambda f: f.square(),
    "root": lambda f: torch.sqrt(f * f + 0.5),
    "abs": abs,
    "sign": torch.sign,
    "positive part": lambda f: f.clamp(min=0.0),
    "bounded": lambda f: torch.clamp(f, -0.5, 0.7),
    "larger": lambda f: torch.maximum(torch.tensor(0.3, dtype=torch.float64), f),
    "reciprocal": lambda f: 1 / (f * f + 1),
    "cube": lambda f: f**3,
    "mixed": lambda f: torch.lerp(f, 2 - f, 0.25),
    "tensor first": lambda f: torch.full((5,), 2.0, dtype=torch.float64) * f - 1,
}
BINARY = {
    "sum": lambda f, g: f + g,
    "difference": lambda f, g: f - g,
    "product": lambda f, g: f * g,
    "quotient": lambda f, g: f / (1 + g.square()),
    "larger": lambda f, g: f.maximum(g),
}
numbers = st.floats(-3, 3, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-3)
vectors = st.lists(numbers, min_size=5, max_size=5).map(lambda x: torch.tensor(x).double())


class Formula:
    """A formula in x that shows itself."""

    def __init__(self, text, function):
        self._text, self._function = text, function

    def __call__(self, x):
        return self._function(x)

    def __repr__(self):
        return self._text


@st.composite
def formulas(draw, depth=3):
    """A random formula in x, of nested functions."""
    if depth == 0:
        shift = draw(st.integers(-4, 4)) / 4
        return Formula(f"x + {shift}", lambda x: x + shift)
    if draw(st.booleans()):
        name, inner = draw(st.sampled_from(sorted(UNARY))), draw(formulas(depth - 1))
        return Formula(f"{name}({inner})", lambda x: UNARY[name](inner(x)))
    name = draw(st.sampled_from(sorted(BINARY)))
    left, right = draw(formulas(depth - 1)), draw(formulas(depth - 1))
    return Formula(f"{name}({left}, {right})", lambda x: BINARY[name](left(x), right(x)))


@settings(max_examples=200, deadline=None)
@given(formula=formulas(), x=vectors)
def test_slope_times_gradient_is_the_difference(formula, x):
    f = formula(Divided(x, x.new_zeros(()), 1.0))
    slope = torch.zeros_like(x) + f.slope
    difference = formula(x) - formula(torch.zeros_like(x))
    scale = 1 + difference.abs() + formula(x).abs()
    moved = x != 0
    assert ((slope * x - difference).abs() <= 1e-9 * scale)[moved].all()


@settings(max_examples=100, deadline=None)
@given(formula=formulas(), x=vectors)
def test_at_one_point_the_slope_is_the_derivative(formula, x):
    probe = x.clone().requires_grad_()
    value = formula(probe)
    expected = torch.autograd.grad(value.sum(), probe, allow_unused=True)[0]
    expected = torch.zeros_like(x) if expected is None else expected
    found = torch.zeros_like(x) + formula(Divided(x, x, 1.0)).slope
    # at corners autograd takes either side, and a divided difference may be 0 / 0
    right, left = formula(x + 1e-6) - formula(x), formula(x) - formula(x - 1e-6)
    smooth = torch.isfinite(found) & (x != 0) & ((right - left).abs() < 1e-9)
    assert torch.allclose(found[smooth], expected[smooth], rtol=1e-6, atol=1e-6)


def test_small_gradients_keep_their_digits():
    x = torch.tensor([1e-12], dtype=torch.float32)
    f = torch.sqrt(Divided(x, x.new_zeros(()), 1.0) + 1.0)
    torch.testing.assert_close(f.slope, torch.tensor([0.5]))


@pytest.mark.parametrize(
    "formula",
    [torch.exp, lambda f: f.sum(), lambda f: f > 0, lambda f: f[0], float, lambda f: f**0.3],
)
def test_what_has_no_divided_difference_is_refused(formula):
    x = torch.ones(3)
    with pytest.raises(NotSupportedError, match="no divided difference"):
        formula(Divided(x, x.new_zeros(()), 1.0))
