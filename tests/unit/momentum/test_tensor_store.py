"""A tensor comes back from a tensor_store as it was put there, and leaves nothing behind."""

import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inrun.errors import StoreError
from inrun.momentum import Holding, tensor_store_of
from inrun.momentum._tensor_store import OnDisk, OnHost, TensorStore, _Moved, holding

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]


@contextmanager
def files_of_at_most(size):
    """The system refuses larger ones, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return OnDisk(tmp_path_factory.mktemp("disk"))


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(DTYPES),
)
def test_numbers_and_their_order_in_memory_come_back(disk, shape, order, dtype):
    axes = list(range(len(shape)))
    order.shuffle(axes)
    t = torch.randint(-9, 9, shape).to(dtype).permute(axes)
    for kept in (disk.keep(t), _Moved(t), TensorStore().keep(t)):
        for found in (kept.look(), kept.take()):
            assert torch.equal(found, t)
            assert found.dtype == t.dtype
            if t.numel():
                assert found.stride() == t.stride()


def test_views_and_repeated_elements_come_back(disk):
    x = torch.randn(6, 5)
    for t in (x[1:4, ::2], x[:1].expand(3, 5), x.T[2:]):
        assert torch.equal(disk.keep(t).take(), t)


def test_a_file_goes_when_its_tensor_is_taken_and_the_folder_when_the_shelf_is_closed(tmp_path):
    tensor_store = OnDisk(tmp_path)
    kept = [tensor_store.keep(torch.ones(3)), tensor_store.keep(torch.ones(3))]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    kept[0].take()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    tensor_store.close()
    assert list(tmp_path.iterdir()) == []
    other = OnDisk(tmp_path)
    other.keep(torch.ones(3))
    del other
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_refuses_stays_in_memory_and_no_torn_file_does(tmp_path):
    tensor_store, t = OnDisk(tmp_path), torch.randn(1000)
    with files_of_at_most(500):
        kept = tensor_store.keep(t)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert "cannot take" in str(tensor_store.failure)
    assert kept.take() is t
    tensor_store.failure = None
    assert torch.equal(tensor_store.keep(t).take(), t)
    assert tensor_store.failure is None


def test_a_file_that_is_gone_or_torn_is_named(tmp_path):
    tensor_store = OnDisk(tmp_path)
    gone, torn = tensor_store.keep(torch.ones(9)), tensor_store.keep(torch.ones(9))
    first, second = sorted(tmp_path.rglob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-4])
    for kept, file in ((gone, first), (torn, second)):
        with pytest.raises(StoreError, match=file.name):
            kept.look()


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(StoreError, match=r"held_in.*there"):
        tensor_store_of(tmp_path / "nowhere")


def test_each_storage_and_file_counts_once(tmp_path):
    x, disk = torch.randn(10, 4), OnDisk(tmp_path)
    shared = [TensorStore().keep(x), TensorStore().keep(x[2:])]
    assert holding(shared) == Holding(160, 0)
    filed = disk.keep(x)
    (file,) = tmp_path.rglob("*.safetensors")
    assert holding([*shared, filed, filed]) == Holding(160, file.stat().st_size)
    assert isinstance(tensor_store_of("cpu"), OnHost)
    assert OnHost().leaves(x)  # it is on the CPU already
    assert not OnHost().leaves(x.to("meta"))


def test_free_room_is_known_where_the_system_tells_it(tmp_path):
    assert OnDisk(tmp_path).free(torch.device("cpu")) > 0
    assert TensorStore().free(torch.device("meta")) is None
