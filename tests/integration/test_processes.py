"""DistributedDataParallel under torchrun: values and books are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import NotSupportedError
from tests.integration import several_processes as script


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    """The folder in which so many processes left their tables."""
    folder = tmp_path_factory.mktemp(f"on{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={request.param}", script.__file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, request.param


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on1")
    return {name: script.run(folder, name, **options) for name, options in script.CASES.items()}


@pytest.mark.parametrize("name", script.CASES)
def test_values_and_books_are_those_of_one_process(name, several, one):
    folder, _ = several
    expected = one[name].values()
    stored, told = inrun.load(folder / name), pq.read_table(folder / f"{name}.parquet")
    assert (
        stored.values()
        .drop_columns(["value", "value_normalised"])
        .equals(expected.drop_columns(["value", "value_normalised"]))
    )
    rtol = 1e-6 if name == "single precision" else 1e-10
    size = rtol * np.abs(expected["value"].to_numpy()).max()
    for found in (stored.values(), told):
        np.testing.assert_allclose(
            found["value"].to_numpy(), expected["value"].to_numpy(), rtol=rtol, atol=size
        )
    books, truth = stored.ledger(), one[name].ledger()
    assert books["visits"].equals(truth["visits"])
    for entry in ("opening_loss", "closing_loss", "samples", "momentum", "weight_decay"):
        np.testing.assert_allclose(
            books[entry].to_numpy(), truth[entry].to_numpy(), rtol=rtol, atol=size
        )


def test_what_cannot_be_done_is_said_in_every_process_alike(several):
    folder, processes = several
    said = [(folder / f"said-{rank}").read_text().splitlines() for rank in range(processes)]
    for stream, audit, invariant in said:
        assert "capture='hold'" in stream
        assert "one process" in audit
        assert "do not sum" in invariant


def test_sharded_and_threaded_models_are_refused():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(lambda m, b: m(b).sum(), torch.randn(4, 3))
    with pytest.raises(NotSupportedError, match="DistributedDataParallel, one process"):
        inrun.attach(nn.DataParallel(model), optimizer, utility)
