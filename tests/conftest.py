"""One thread a test process: two processes with two threads each wait for one another."""

import gc
import os

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish():
    """What all imports left is not looked through again by each of the tests that collect."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Python's end looks through everything: bindings complain of what is left."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """No test cuts the power, and every stored file would wait for the disk some milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
