"""Changes that keep a gradient's shares are known; those that do not are not believed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.scoring._gradients import Precision, factor_between


def explains(raw, changed, dtype=None, computed=0.0):
    """Whether a known change explains it; then each element has a factor."""
    factor = factor_between(raw, changed, Precision.of(dtype or raw.dtype, computed))
    if factor is not None:
        assert factor.shape == raw.shape
        assert torch.isfinite(factor).all()
        assert ((factor * raw).abs() <= 1.1 * changed.abs().max()).all() if raw.numel() else True
    return factor is not None


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 99),
    k=st.sampled_from([1.0, 0.03, -1.0, -20.0]), limit=st.sampled_from([0.01, 0.5, 100.0]),
    kept=st.sampled_from([1.0, 0.6, 0.0]),
)  # fmt: skip
def test_a_factor_a_clip_and_a_mask_together_are_known(rows, columns, seed, k, limit, kept):
    raw = drawn((rows, columns), seed)
    mask = (torch.rand(raw.shape, generator=torch.Generator().manual_seed(seed)) < kept).double()
    assert explains(raw, mask * (k * raw).clamp(-limit, limit))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_factor_for_each_unit_is_known(axis):
    raw = drawn((6, 5), 0)
    factors = torch.rand((6, 1) if axis == 0 else (1, 5)).double()
    found = factor_between(raw, factors * raw, Precision.of(raw.dtype, 0.0))
    torch.testing.assert_close(found, factors.expand(6, 5))
    assert explains(raw.float(), (factors * raw).float())


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(2, 6), columns=st.integers(3, 6), seed=st.integers(0, 99))
def test_another_gradient_on_top_is_not_believed(rows, columns, seed):
    raw, other = drawn((rows, columns), seed), drawn((rows, columns), seed + 100)
    assert not explains(raw, raw + 0.3 * other)


@settings(max_examples=60, deadline=None)
@given(columns=st.integers(3, 8), samples=st.integers(1, 6), seed=st.integers(0, 99))
def test_nor_on_top_of_a_head_of_two_classes(columns, samples, seed):
    raw, other = (drawn((columns,), seed + s) for s in (0, 100))
    two = torch.tensor([[1.0], [-1.0]]).double()
    assert not explains(two * raw, two * (raw + 0.3 * other))


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(3, 8), columns=st.integers(3, 8), seed=st.integers(0, 99))
def test_nor_where_one_sample_is_passed_twice(classes, columns, seed):
    x, first, second = (
        drawn((columns,), seed),
        drawn((classes,), seed + 1),
        drawn((classes,), seed + 2),
    )
    raw = torch.outer(first - first.mean(), x)
    assert not explains(raw, raw + torch.outer(second - second.mean(), x))


def test_elements_that_were_mixed_are_not_believed():
    raw = drawn((6, 5), 1)
    assert not explains(raw, raw - raw.mean(1, keepdim=True))
    assert not explains(raw, raw + 0.1 * raw.abs())


def test_a_parameter_without_elements_was_not_changed():
    assert explains(torch.zeros(0, 3), torch.zeros(0, 3))


HALVES = [torch.bfloat16, torch.float16]


def rounded(gradient, dtype, seed=0):
    """A gradient as half precision sums it: off by its eps, at random."""
    return (gradient + torch.finfo(dtype).eps * gradient.norm() / gradient.numel() ** 0.5
            * drawn(gradient.shape, seed + 50)).to(dtype)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(HALVES), seed=st.integers(0, 99),
    how=st.sampled_from([(1.0, 1e-6), (1.0, 1e-3), (1.0, 0.05), (0.03, 0.02), (-20.0, 9.0),
                         (1.0, 0.5), (0.03, 100.0), (-20.0, 100.0)]),
)  # fmt: skip
def test_half_precision_is_allowed_its_rounding(dtype, seed, how):
    raw, (k, limit) = drawn((16, 8), seed), how
    real = rounded(raw, dtype, seed)
    changed = (k * real).to(dtype).clamp(-limit, limit)
    assert explains(raw.float(), changed.float(), dtype)
    in_half = changed.float()  # half precision inside a model of single precision
    assert explains(raw.float(), in_half, torch.float32, torch.finfo(dtype).eps)


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from(HALVES), seed=st.integers(0, 99), limit=st.sampled_from([0.3, 100.0]))
def test_half_precision_hides_no_other_gradient(dtype, seed, limit):
    raw, other = drawn((16, 8), seed), drawn((16, 8), seed + 100)
    for added in (0.2 * other, -raw.mean(1, keepdim=True)):
        changed = (raw + added).to(dtype).clamp(-limit, limit)
        assert not explains(raw.float(), changed.float(), dtype)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), k=st.sampled_from([1e-4, -1e-6]))
def test_a_factor_whose_result_lies_between_the_smallest_numbers_is_known(seed, k):
    raw = drawn((16, 8), seed)
    changed = (k * raw.half()).half()
    assert explains(raw.float(), changed.float(), torch.float16)


@pytest.mark.parametrize("limit", [1e-5, 1e-3])
def test_a_hard_clip_says_how_far_it_cut(limit):
    raw = drawn((16, 8), 3).float()
    changed = raw.bfloat16().clamp(-limit, limit).float()
    factor = factor_between(raw, changed, Precision.of(torch.bfloat16, 0.0))
    torch.testing.assert_close(factor * raw, changed, rtol=0, atol=limit * 1e-6)
    assert not explains(raw, changed * torch.where(drawn((16, 8), 4) > 0, 1, -1), torch.bfloat16)
