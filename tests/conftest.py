"""One thread a test process: two processes with two threads each wait for one another."""

import gc
import os

import pytest
import torch

from inrun.optim import _hooks

torch.set_num_threads(1)


def pytest_collection_finish():
    """What all imports left is not looked through again by each of the tests that collect.

    Models of a few kilobytes make cycles of some hundred objects each: at Python's threshold an
    eighth of a test's time goes to looking for them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """An attribution that a test leaves in a cycle is gone before the next: it warns as it goes."""
    if _hooks._listening:
        gc.collect(1)


def pytest_sessionfinish():
    """Python's end looks through everything: bindings complain of what is left."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _seeds_without_stacks():
    """`torch.manual_seed` notes the whole stack for each kind of device that is not there yet."""
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """No test cuts the power, and every stored file would wait for the disk some milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
