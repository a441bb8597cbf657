"""The run on disk: what was written comes back; what is torn or foreign is named."""

import json
import os
import signal

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import InRunWarning, MisuseError, StoreError
from inrun.ledger import Entries, RunFolder, ledger_rows
from tests.integration.stored import as_older_version
from tests.processes import forks


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(store, steps=6, ids=None, block_visits=None):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    utility = inrun.Utility(loss_fn, targets={"a": (x[20:25], y[20:25]), "b": (x[25:], y[25:])})
    attribution = inrun.attach(
        model, optimizer, utility, store=store, options=inrun.Options(progress=False)
    )
    if block_visits:
        attribution._record._folder._block_visits = block_visits
    for step in range(steps):
        rows = [(step * 3 + i) % 20 for i in range(5)]
        with attribution.batch(rows if ids is None else [ids(r) for r in rows]):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return attribution


@pytest.mark.parametrize("ids", [None, lambda row: f"sample \"{row}\" 'x'"], ids=["int", "str"])
def test_a_loaded_run_gives_the_same_tables(tmp_path, ids):
    attribution = trained(tmp_path / "run", ids=ids, block_visits=7)
    live = attribution.values()
    attribution.detach()
    assert len(list((tmp_path / "run" / "visits").glob("*.parquet"))) > 2
    run = inrun.load(tmp_path / "run")
    stored = run.values()
    assert stored.schema.equals(live.schema)
    for name in live.schema.names:
        if live.schema.field(name).type == "double":
            np.testing.assert_allclose(stored[name].to_numpy(), live[name].to_numpy(), atol=1e-15)
        else:
            assert stored[name].to_pylist() == live[name].to_pylist()
    assert run.ledger().equals(attribution.ledger())
    assert run.ledger("b").num_rows == 6
    assert run.coverage().equals(attribution.coverage())
    assert run.visits().num_rows == 30
    assert run.estimator == "path"
    assert run.targets == ("a", "b")


def test_store_and_memory_agree(tmp_path):
    with_store, without = trained(tmp_path / "run"), trained(None)
    assert with_store.values().equals(without.values())
    assert with_store.ledger().equals(without.ledger())
    with pytest.raises(MisuseError, match="attach with store="):
        without.visits()


def test_any_parquet_reader_reads_the_folder(tmp_path):
    trained(tmp_path / "run", block_visits=7).detach()
    visits = pyarrow.dataset.dataset(tmp_path / "run" / "visits").to_table()
    assert visits.num_rows == 30
    samples = inrun.load(tmp_path / "run").ledger()["samples"].to_numpy().sum()
    assert visits["value"].to_numpy().sum() == pytest.approx(samples)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    trained(tmp_path / "run").detach()
    with pytest.raises(StoreError, match="holds a run already"):
        trained(tmp_path / "run")


def test_a_torn_part_is_named_and_the_others_stay_readable(tmp_path):
    trained(tmp_path / "run", block_visits=7).detach()
    parts = sorted((tmp_path / "run" / "visits").glob("*.parquet"))
    whole = parts[-1].read_bytes()
    parts[-1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=rf"{parts[-1].name} is torn"):
        inrun.load(tmp_path / "run")
    with pytest.warns(InRunWarning, match=rf"{parts[-1].name} is torn"):
        before = inrun.load(tmp_path / "run", incomplete=True)
    assert 0 < before.visits().num_rows < 30
    parts[-1].unlink()
    with pytest.raises(StoreError, match=rf"{parts[-1].name} is missing"):
        inrun.load(tmp_path / "run")
    parts[0].unlink()
    with pytest.raises(StoreError, match=r"000000\.parquet is missing"):
        inrun.load(tmp_path / "run")


def test_books_of_another_version_are_named_with_what_differs(tmp_path):
    trained(tmp_path / "run").detach()
    as_older_version(tmp_path / "run")
    part = next((tmp_path / "run" / "ledger").glob("*.parquet"))
    pq.write_table(pq.read_table(part).drop_columns(["momentum"]), part)
    with pytest.warns(InRunWarning, match="no checksums"):
        run = inrun.load(tmp_path / "run")
    with pytest.raises(StoreError, match=r"momentum.*another version"):
        run.ledger()


def test_what_is_not_a_run_is_said(tmp_path):
    with pytest.raises(StoreError, match=r"no run\.json"):
        inrun.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        inrun.load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match="not of format 1"):
        inrun.load(tmp_path)


def test_an_unwritable_place_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be stored"):
        trained(tmp_path / "file" / "run")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run", estimator="path", targets=["v"], weights=[1.0])
    folder.create()
    one = np.ones(1)
    entries = Entries(one, one, one, one, one)
    rows = ledger_rows(1, "path", 1, ["v"], [1.0], entries)
    folder.add(1, [7], np.ones((1, 1)), rows)
    folder.flush()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder.add(2, [8], np.ones((1, 1)), rows)
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreError, match=r"No space left.*written before are whole"):
        folder.flush()
    monkeypatch.undo()
    assert inrun.load(tmp_path / "run").values()["sample_id"].to_pylist() == [7]
    folder.flush()  # there is room again: nothing was dropped
    assert inrun.load(tmp_path / "run").values()["sample_id"].to_pylist() == [7, 8]


def trained_until_killed(folder):
    attribution = trained(folder, steps=9, block_visits=10)  # alive: nothing of it is closed
    os.kill(os.getpid(), signal.SIGKILL)
    attribution.detach()


def test_a_killed_process_leaves_a_readable_run(tmp_path):
    process = forks.Process(target=trained_until_killed, args=(tmp_path / "run",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = inrun.load(tmp_path / "run")
    assert run.visits().num_rows == 40  # all but the last, unflushed block of 5
    whole = trained(None, steps=8)
    np.testing.assert_allclose(run.values()["value"].to_numpy(), whole.values()["value"].to_numpy())
