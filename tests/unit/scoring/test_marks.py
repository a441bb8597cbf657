"""The weights' mark changes with any weight, in any precision and layout."""

import pytest
import torch

from inrun.scoring._marks import WeightsMark


def same(p, q):
    return WeightsMark(p).same(WeightsMark(q))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 1001])
def test_every_single_change_shows(dtype, size):
    p = torch.randn(size).to(dtype)
    before = WeightsMark([p])
    assert WeightsMark([p.clone()]).same(before)
    for i in {0, size // 2, size - 1} if size else set():
        q = p.clone()
        q.data.view(torch.uint8)[i * p.element_size()] ^= 1  # one number's last bit, uncounted
        assert not WeightsMark([q]).same(before)


def test_layout_does_not_matter_and_views_are_read():
    p = torch.randn(6, 7)
    assert same([p.T], [p.T.contiguous()])
    buffer = torch.randn(101)
    assert same([buffer[1:]], [buffer[1:].clone()])
    assert same([], [])
    assert not same([torch.tensor(2.0)], [torch.tensor(3.0)])


def test_of_a_large_parameter_counted_edits_show_anywhere_and_uncounted_ones_if_they_are_wide():
    p = torch.randn(300_001)
    before = WeightsMark([p])
    p[7] += 1
    assert not WeightsMark([p]).same(before)
    before = WeightsMark([p])
    p.data.clamp_(-1, 1)
    assert not WeightsMark([p]).same(before)
