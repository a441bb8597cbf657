"""A run that is killed and resumed gives the values of one that was not, each visit once."""

import os
import signal
import warnings

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.factors import LowRankContraction
from inrun.ledger import read_state, write_state
from tests.processes import forks
from tests.settings import flat

STEPS, EVERY = 14, 4


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(80, 6, generator=generator), torch.randint(3, (80,), generator=generator)


class Training:
    """A script that checkpoints every fourth step, and dies where it is told to."""

    def __init__(self, folder, die=None, capture="hold", stored=True, **options):
        self.folder, self.die, self.visit = folder, die, {}
        x, y = data()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.2), nn.Tanh(), nn.Linear(40, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(loss_fn, (x[64:], y[64:])),
            store=folder / "run" if stored else None,
            resume=stored,
            **flat(
                progress=False,
                capture=capture,
                contraction=LowRankContraction(rank=2),
                smoothed_steps=0,
                **options,
            ),
        )

    def at(self, place):
        """Ends the process as kill -9 does, the n-th time that a place is passed."""
        self.visit[place] = self.visit.get(place, 0) + 1
        if self.die == (place, self.visit[place]):
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self):
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        kept = torch.load(path, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        self.at("before the state is loaded")
        self.attribution.load_state_dict(kept["attribution"])
        return kept["step"]

    def save(self, step):
        state = {
            "step": step, "model": self.model.state_dict(), "random": torch.get_rng_state(),
            "optimizer": self.optimizer.state_dict(), "attribution": self.attribution.state_dict(),
        }  # fmt: skip
        self.at("state taken, not saved")
        torch.save(state, self.folder / "checkpoint.partial")
        self.at("saved beside")
        os.replace(self.folder / "checkpoint.partial", self.folder / "checkpoint.pt")

    def run(self, *, detach=True):
        x, y = data()
        for step in range(self.load(), STEPS):
            rows = (torch.arange(8) + 8 * step) % 64
            with self.attribution.batch(rows):
                loss_fn(self.model, (x[rows], y[rows])).backward()
            self.at("before the step")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.at("after the step")
            if step % 3 == 2:
                self.attribution.flush()
                self.at("after a flush")
            if (step + 1) % EVERY == 0:
                self.save(step + 1)
        if detach:
            self.attribution.detach()
        return self


def train(folder, die, options):
    """What a process of its own does."""
    warnings.simplefilter("ignore")
    renaming = os.replace

    def replace(source, target):
        training.at(f"renaming {os.path.basename(target)}")
        renaming(source, target)
        training.at(f"renamed {os.path.basename(target)}")

    training = Training(folder, die, **options)
    os.replace = replace
    training.run()


def in_a_process(folder, die, options):
    """Trains in a process of its own, and says how it ended."""
    process = forks.Process(target=train, args=(folder, die, options))
    process.start()
    process.join()
    return process.exitcode


PLACES = [
    [("before the step", 3)],  # nothing is saved yet
    [("before the step", 7), ("after the step", 1)],
    [("after a flush", 2), ("before the state is loaded", 1)],
    [("state taken, not saved", 2)],
    [("saved beside", 3), ("before the step", 2), ("after a flush", 1)],
    [("renaming 000002.parquet", 1)],  # visits are on disk, their books are not
    [("renamed 000004.parquet", 1), ("renamed 000004.parquet", 1)],  # and while parts are set aside
]


def tables(folder):
    run = inrun.load(folder / "run")
    visits = run.visits().sort_by([("step", "ascending"), ("sample_id", "ascending")])
    return run.values(), visits, run.ledger()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {}

    def of(capture):
        if capture not in folders:
            folders[capture] = tmp_path_factory.mktemp("whole")
            assert in_a_process(folders[capture], None, {"capture": capture}) == 0
        return tables(folders[capture])

    return of


@pytest.mark.parametrize(
    ("places", "capture"),
    [(places, "hold") for places in PLACES] + [(PLACES[1], "stream")],
    ids=lambda case: case if isinstance(case, str) else ", then ".join(p for p, _ in case),
)
def test_killed_and_resumed_is_never_killed(places, capture, tmp_path, uninterrupted):
    for place in places:
        assert in_a_process(tmp_path, place, {"capture": capture}) == -signal.SIGKILL, place
    assert in_a_process(tmp_path, None, {"capture": capture}) == 0
    for found, expected in zip(tables(tmp_path), uninterrupted(capture), strict=True):
        assert found.equals(expected)
    assert pc.sum(tables(tmp_path)[0]["visits"]).as_py() == 8 * STEPS


def test_what_a_kill_cost_is_set_aside_and_not_destroyed(tmp_path):
    assert in_a_process(tmp_path, ("after a flush", 2), {}) == -signal.SIGKILL
    before = {p.name for p in (tmp_path / "run" / "visits").glob("*.parquet")}
    assert in_a_process(tmp_path, None, {}) == 0
    aside = list((tmp_path / "run" / "discarded").rglob("*.parquet"))
    assert {p.parent.name for p in aside} == {"visits", "ledger"}
    assert {p.name for p in aside} < before


def test_a_run_without_a_store_resumes_from_the_state_alone(tmp_path):
    whole = Training(tmp_path / "a", stored=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole.run()
    first = Training(tmp_path / "b", stored=False)
    x, y = data()
    for step in range(6):
        rows = (torch.arange(8) + 8 * step) % 64
        with first.attribution.batch(rows):
            loss_fn(first.model, (x[rows], y[rows])).backward()
        first.optimizer.step()
        first.optimizer.zero_grad()
    first.save(6)
    second = Training(tmp_path / "b", stored=False).run()
    assert second.attribution.values().equals(whole.attribution.values())
    assert second.attribution.ledger().equals(whole.attribution.ledger())


def test_steps_taken_outside_are_no_part_of_what_is_resumed(tmp_path):
    training = Training(tmp_path)
    x, y = data()
    with training.attribution.batch(range(8)):
        loss_fn(training.model, (x[:8], y[:8])).backward()
    with pytest.raises(MisuseError, match="between backward"):
        training.attribution.state_dict()
    training.optimizer.step()
    state = training.attribution.state_dict()
    with pytest.raises(MisuseError, match="within a step"):
        with training.attribution.batch(range(8)):
            training.attribution.load_state_dict(state)


def changed_table(state):
    name = next(n for n in state["tensors"] if n.endswith("values"))
    state["tensors"][name][-9] += 1


def changed_header(state):
    state["header"] = state["header"].replace('"taken": 14', '"taken": 13')


def cut(state):
    state["tensors"].popitem()


@pytest.mark.parametrize("spoil", [changed_table, changed_header, cut])
def test_a_state_that_was_changed_is_refused(spoil, tmp_path):
    training = Training(tmp_path, stored=False)
    training.run(detach=False)
    state = training.attribution.state_dict()
    spoil(state)
    with pytest.raises(StoreError, match="changed or cut off"):
        Training(tmp_path, stored=False).attribution.load_state_dict(state)


def test_states_of_something_else_are_refused(tmp_path):
    training = Training(tmp_path)
    state = training.attribution.state_dict()
    for nothing in ({}, None, "state", {"model": 1}):
        with pytest.raises(StoreError, match="not an attribution's state"):
            training.attribution.load_state_dict(nothing)
    with pytest.raises(StoreError, match="format 2"):
        training.attribution.load_state_dict({**state, "format": 2})
    with pytest.raises(MisuseError, match="with a store"):
        Training(tmp_path, stored=False).attribution.load_state_dict(state)
    with pytest.raises(MisuseError, match=r"capture 'hold'.*'stream'"):
        Training(tmp_path / "b", capture="stream").attribution.load_state_dict(state)
    with pytest.raises(StoreError, match="not the run"):
        Training(tmp_path / "c").attribution.load_state_dict(state)


def stored_state(folder):
    training = Training(folder)
    x, y = data()
    with training.attribution.batch(range(8)):
        loss_fn(training.model, (x[:8], y[:8])).backward()
    training.optimizer.step()
    return training.attribution.state_dict()


def test_a_store_that_was_changed_cut_off_or_thinned_out_is_refused_and_stays_as_it_is(tmp_path):
    state = stored_state(tmp_path)
    part = tmp_path / "run" / "visits" / "000000.parquet"
    whole = part.read_bytes()
    for spoiled in (whole[:-20], whole[:100] + b"\x00" + whole[101:]):
        part.write_bytes(spoiled)
        with pytest.raises(StoreError, match="changed or cut off"):
            Training(tmp_path).attribution.load_state_dict(state)
        assert part.read_bytes() == spoiled
    part.unlink()
    with pytest.raises(StoreError, match=r"000000\.parquet is missing"):
        Training(tmp_path).attribution.load_state_dict(state)
    part.write_bytes(whole)
    Training(tmp_path).attribution.load_state_dict(state)


def test_a_state_file_is_read_back_or_refused(tmp_path):
    state = stored_state(tmp_path)
    write_state(tmp_path / "state.safetensors", state)
    found = read_state(tmp_path / "state.safetensors")
    assert found["header"] == state["header"]
    for name, tensor in state["tensors"].items():
        np.testing.assert_array_equal(found["tensors"][name], tensor)
    content = (tmp_path / "state.safetensors").read_bytes()
    for spoiled in (content[:-5], b"", b"\x80\x04pickle"):
        (tmp_path / "torn").write_bytes(spoiled)
        with pytest.raises(StoreError, match="torn"):
            read_state(tmp_path / "torn")
    with pytest.raises(StoreError):
        read_state(tmp_path / "nowhere")


def test_a_store_is_not_taken_over_unless_it_is_said(tmp_path):
    stored_state(tmp_path)
    with pytest.raises(StoreError, match="resume=True"):
        RunAgain(tmp_path)
    with pytest.raises(StoreError, match="estimator"):
        Training(tmp_path, estimator="sgd")


def RunAgain(folder):  # noqa: N802
    x, y = data()
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(loss_fn, (x, y))
    return inrun.attach(
        model, optimizer, utility, store=folder / "run", options=inrun.Options(progress=False)
    )
