"""Changes that keep a gradient's shares are known; those that do not are not believed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inrun.scoring._gradients import explains


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
    assert explains(raw, factors * raw)
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
