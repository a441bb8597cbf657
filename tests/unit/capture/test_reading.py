"""Numbers of a device come to the host as they are, all that wait with the first asked for."""

import gc

import pytest
import torch

from inrun.capture import Reading, _reading

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool]


@pytest.fixture
def transfers(monkeypatch):
    """Takes the CPU for a device, and counts the tensors of each transfer."""
    counts, fetched = [], _reading.transferred
    monkeypatch.setattr(_reading, "is_elsewhere", lambda _: True)
    monkeypatch.setattr(
        _reading, "transferred", lambda tensors: counts.append(len(tensors)) or fetched(tensors)
    )
    return counts


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 5), (0, 4), (7, 1, 3)])
def test_every_dtype_and_shape_arrives_bit_for_bit(shape, transfers):
    sent = [(10 * torch.randn(shape)).to(dtype) for dtype in DTYPES]
    found = Reading(*sent).wait()
    assert transfers == [len(DTYPES)]
    for want, t in zip(sent, found, strict=True):
        assert (t.dtype, t.shape) == (want.dtype, want.shape)
        assert t.equal(want)


def test_strides_do_not_matter():
    x = torch.randn(4, 6)
    assert torch.equal(_reading.transferred([x.T, x[::2, 1:]])[0], x.T)
    assert torch.equal(_reading.transferred([x.T, x[::2, 1:]])[1], x[::2, 1:])


def test_all_that_wait_come_at_once_and_once(transfers):
    first, second = Reading(torch.ones(2)), Reading(torch.zeros(3), torch.arange(4))
    assert second.wait()[1].tolist() == [0, 1, 2, 3]
    assert first.wait()[0].tolist() == [1, 1]
    assert second.wait()[0].tolist() == [0, 0, 0]
    assert transfers == [3]


def test_what_nobody_can_ask_for_any_more_is_not_fetched(transfers):
    dropped, kept = Reading(torch.ones(2)), Reading(torch.ones(3))
    del dropped
    gc.collect()
    kept.wait()
    assert transfers == [1]


def test_what_lies_on_the_host_is_not_fetched(monkeypatch):
    monkeypatch.setattr(_reading, "transferred", lambda _: pytest.fail("a transfer"))
    t = torch.ones(2)
    assert Reading(t).wait()[0].equal(t)
