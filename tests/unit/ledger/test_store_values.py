"""What a stored run says is what was live, bit for bit, whatever folders and targets are called."""

import hashlib

import numpy as np
import pytest

import inrun
from inrun.errors import InRunWarning, MisuseError, StoreError
from inrun.ledger import pack_state, unpack_state
from tests.integration.small_run import SmallRun
from tests.integration.stored import as_older_version

FOLDERS = ["step=100/run", "value=7/run", "sample_id=3/run", "run[1]", "run*", "a?b", "ä ö", "%41"]
NAMES = [("A", "a"), ("Value", "x"), ("Step", "SAMPLE_ID"), ("a.b", "a"), ("'", '"'), ("%", "ß")]


def same_bits(stored, live):
    assert stored.schema.equals(live.schema)
    for name in live.column_names:
        a, b = stored[name], live[name]
        if live.schema.field(name).type == "double":
            np.testing.assert_array_equal(a.to_numpy().view(np.int64), b.to_numpy().view(np.int64))
        else:
            assert a.to_pylist() == b.to_pylist()


@pytest.mark.parametrize("folder", FOLDERS)
def test_values_do_not_depend_on_the_folders_name(folder, tmp_path):
    SmallRun(tmp_path / "run1", seed=5).run().end()
    place = tmp_path / folder
    same_bits_of = SmallRun(place, block_visits=9).run().end()
    same_bits(inrun.load(place).values(), same_bits_of)


@pytest.mark.parametrize("names", NAMES)
def test_values_do_not_depend_on_the_targets_names(names, tmp_path):
    live = SmallRun(tmp_path / "run", names=names, block_visits=9).run().end()
    same_bits(inrun.load(tmp_path / "run").values(), live)


@pytest.mark.parametrize(
    "options", [{}, {"momentum_window": 3}, {"every": 2}, {"capture": "stream"}], ids=str
)
@pytest.mark.parametrize("names", [("only",), ("b", "c")], ids=len)
def test_sums_of_a_stored_run_are_the_live_ones_bit_for_bit(options, names, tmp_path):
    live = SmallRun(tmp_path / "run", names=names, block_visits=9, **options).run(23).end()
    stored = inrun.load(tmp_path / "run")
    same_bits(stored.values(), live)
    same_bits(stored.values(), stored.values())


@pytest.mark.parametrize("options", [{}, {"momentum_window": 3}, {"every": 2}], ids=str)
def test_a_resumed_runs_sums_are_its_stored_ones_bit_for_bit(options, tmp_path):
    first = SmallRun(tmp_path / "run", block_visits=9, **options).run(11)
    state = first.attribution.state_dict()
    first.run(3)
    second = SmallRun(tmp_path / "run", resume=True, block_visits=9, **options)
    second.attribution.load_state_dict(state)
    live = second.run(7).end()
    same_bits(inrun.load(tmp_path / "run").values(), live)


def test_steps_that_wait_for_momentum_are_in_the_live_values_and_not_stored_yet(tmp_path):
    run = SmallRun(tmp_path / "run", momentum_window=3).run(4)
    run.attribution.flush()
    live, stored = run.attribution.values(), inrun.load(tmp_path / "run").values()
    assert sum(live["visits"].to_pylist()) == 32
    assert sum(stored["visits"].to_pylist()) == 8
    same_bits(inrun.load(tmp_path / "run").values(), stored)
    assert sum(run.end()["visits"].to_pylist()) == 32


def test_a_run_of_an_earlier_version_is_read_with_a_note_and_can_be_resumed(tmp_path):
    first = SmallRun(tmp_path / "run", block_visits=9).run()
    first.attribution.flush()
    state, live = first.attribution.state_dict(), first.attribution.values()
    first.end()
    as_older_version(tmp_path / "run")
    with pytest.warns(InRunWarning, match="no checksums"):
        stored = inrun.load(tmp_path / "run")
    same_bits(stored.values(), live)
    assert stored.ledger().num_rows == 6
    second = SmallRun(tmp_path / "run", resume=True, block_visits=9)
    with pytest.raises(StoreError, match="changed or cut off"):  # the files are not those of then
        second.attribution.load_state_dict(state)
    second.attribution.load_state_dict(of_the_files_now(state, tmp_path / "run"))
    live = second.run(3).end()
    with pytest.warns(InRunWarning, match="no checksums"):
        same_bits(inrun.load(tmp_path / "run").values(), live)
    part = sorted((tmp_path / "run" / "visits").glob("*.parquet"))[-1]
    part.write_bytes(part.read_bytes().replace(b"inrun-sha256:", b"inrun-sha257:"))
    with pytest.raises(StoreError, match=rf"{part.name} is torn"):  # what was added has checksums
        inrun.load(tmp_path / "run")


def of_the_files_now(state, folder):
    header, tensors = unpack_state(state)
    for kind in ("visits", "ledger"):
        digest = b""
        for part in sorted((folder / kind).glob("*.parquet")):
            own = hashlib.sha256(part.read_bytes()).digest()
            digest = hashlib.sha256(digest + own).digest()
        header["record"]["store"]["digests"][kind] = digest.hex()
    return pack_state(header, tensors)


@pytest.mark.parametrize("name", ["", " ", "\ud800", "a\0b", "two\nlines"])
def test_targets_without_a_name_are_refused_when_they_are_named(name, tmp_path):
    with pytest.raises(MisuseError, match="cannot be called"):
        SmallRun(None, names=(name, "b"))
