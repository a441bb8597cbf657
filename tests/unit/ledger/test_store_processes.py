"""Processes that share a store, and how they end: no visit is mixed or lost, nothing is left."""

import json
import os
import signal
import socket

import pytest

import inrun
from inrun.errors import StoreError
from tests.integration.small_run import SmallRun
from tests.processes import forks


def trains(folder, payout, ready):
    options = {"momentum_window": payout, "held_in": folder / "waits"} if payout else {}
    run = SmallRun(folder / "run", resume=True, **options).run(4)
    run.attribution.flush()
    ready.set()
    signal.pause()


class Other:
    """A process that trains a few steps and then waits."""

    def __init__(self, folder, payout=0):
        ready = forks.Event()
        self.process = forks.Process(target=trains, args=(folder, payout, ready), daemon=True)
        self.process.start()
        assert ready.wait(120)

    def end(self, how):
        os.kill(self.process.pid, how)
        self.process.join()
        return self.process.exitcode


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_store_that_another_process_writes_is_refused_until_that_ends(how, tmp_path):
    other = Other(tmp_path)
    named = rf"process {other.process.pid} on machine '{socket.gethostname()}'"
    with pytest.raises(StoreError, match=named):
        SmallRun(tmp_path / "run", resume=True)
    assert sum(inrun.load(tmp_path / "run").values()["visits"].to_pylist()) == 32
    assert other.end(how) == -how
    live = SmallRun(tmp_path / "run", resume=True).run(5).end()
    assert sum(live["visits"].to_pylist()) == 40
    assert inrun.load(tmp_path / "run").values().equals(live)
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_folders_of_held_in_are_gone_with_the_resuming_run_at_the_latest(how, tmp_path):
    waits = tmp_path / "waits"
    waits.mkdir()
    (waits / "mine").write_text("not the library's")
    other = Other(tmp_path, payout=3)
    (folder,) = waits.glob("inrun-payout-*")
    beside = SmallRun(None, momentum_window=3, held_in=waits).run(
        3
    )  # another run at the same place
    assert folder.exists()
    assert other.end(how) == -how
    assert folder.exists() == (how == signal.SIGKILL)
    run = SmallRun(tmp_path / "run", resume=True, momentum_window=3, held_in=waits)
    assert not folder.exists()
    run.run(4).end()
    beside.run(4).end()
    assert [path.name for path in waits.iterdir()] == ["mine"]


def test_what_a_process_of_another_machine_left_goes_with_its_own_run_alone(tmp_path):
    waits = tmp_path / "waits"
    waits.mkdir()
    run = SmallRun(tmp_path / "run", momentum_window=2, held_in=waits).run(2)
    told = json.loads(next(waits.glob("*/run.lock")).read_text())
    run.end()
    for name, of in (("own", told["run"]), ("foreign", "another")):
        (waits / f"inrun-payout-{name}").mkdir()
        lock = waits / f"inrun-payout-{name}" / "run.lock"
        lock.write_text(json.dumps(told | {"machine": "elsewhere", "run": of}))
    SmallRun(tmp_path / "run", resume=True, momentum_window=2, held_in=waits).end()
    assert [path.name for path in waits.iterdir()] == ["inrun-payout-foreign"]


def test_a_users_own_handler_of_sigterm_stays(tmp_path):
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        own = signal.getsignal(signal.SIGTERM)
        SmallRun(None, momentum_window=2, held_in=tmp_path).run(2).end()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, mine)
    before = signal.getsignal(signal.SIGTERM)
    run = SmallRun(None, momentum_window=2, held_in=tmp_path)
    assert (signal.getsignal(signal.SIGTERM) is before) == (before is not signal.SIG_DFL)
    run.end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_attaching_again_in_one_program_takes_the_store_over(tmp_path):
    first = SmallRun(tmp_path / "run", block_visits=9).run(3)
    state = first.attribution.state_dict()
    second = SmallRun(tmp_path / "run", resume=True, block_visits=9)
    second.attribution.load_state_dict(state)
    first.step(range(8))
    with pytest.raises(StoreError, match=f"taken over by process {os.getpid()}"):
        first.attribution.flush()
    live = second.run(3).end()
    assert sum(live["visits"].to_pylist()) == 48
    assert inrun.load(tmp_path / "run").values().equals(live)


def test_a_process_that_was_forked_off_does_not_hold_the_store(tmp_path):
    run = SmallRun(tmp_path / "run").run(2)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        run.end()
        SmallRun(tmp_path / "run", resume=True).end()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_refused_attach_lets_the_store_go(tmp_path):
    SmallRun(tmp_path / "run").run(2).end()
    with pytest.raises(StoreError, match="estimator"):
        SmallRun(tmp_path / "run", resume=True, estimator="sgd")
    SmallRun(tmp_path / "run", resume=True).end()
