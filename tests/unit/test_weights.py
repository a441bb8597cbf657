"""The weights' mark changes with any weight, in any precision and layout."""

import pytest
import torch

from inrun.attribution._weights import weights_mark


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 1001])
def test_every_single_change_shows(dtype, size):
    p = torch.randn(size).to(dtype)
    before = weights_mark([p])
    assert weights_mark([p.clone()]) == before
    for i in {0, size // 2, size - 1} if size else set():
        q = p.clone()
        q.data.view(torch.uint8)[i * p.element_size()] ^= 1  # one number's last bit, uncounted
        assert weights_mark([q]) != before


def test_layout_does_not_matter_and_views_are_read():
    p = torch.randn(6, 7)
    assert weights_mark([p.T]) == weights_mark([p.T.contiguous()])
    buffer = torch.randn(101)
    assert weights_mark([buffer[1:]]) == weights_mark([buffer[1:].clone()])
    assert weights_mark([]) == ()
    assert weights_mark([torch.tensor(2.0)]) != weights_mark([torch.tensor(3.0)])


def test_of_a_large_parameter_counted_edits_show_anywhere_and_uncounted_ones_if_they_are_wide():
    p = torch.randn(300_001)
    before = weights_mark([p])
    p[7] += 1
    assert weights_mark([p]) != before
    before = weights_mark([p])
    p.data.clamp_(-1, 1)
    assert weights_mark([p]) != before
