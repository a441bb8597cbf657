"""Steps that wait for momentum may wait on a disk: the same values, and nothing is left there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning, StoreError
from tests.settings import flat
from tests.unit.momentum.test_tensor_store import files_of_at_most

WINDOW, STEPS, BATCH = 4, 13, 6


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Words(nn.Module):
    """Embedding, convolution, attention's shared input, tied weights, a slice of a weight."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.seen, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.LayerNorm(8)
        self.mixed = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        hidden = self.words(x) + self.places
        hidden = hidden + self.seen(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.mixed(*[self.norm(hidden)] * 3, need_weights=False)[0]
        return self.out(hidden.mean(1))


class Run:
    """A training of the model, clipped by value so that shares are scaled by element."""

    def __init__(self, store=None, **options):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randint(11, (90, 5), generator=generator)
        self.y = torch.randint(11, (90,), generator=generator)
        torch.manual_seed(0)
        self.model = Words()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        parts = {"a": (self.x[60:80], self.y[60:80]), "b": (self.x[80:], self.y[80:])}
        given = {"momentum_window": WINDOW, "smoothed_steps": 0, "self_test": False} | options
        self.attribution = inrun.attach(
            self.model,
            self.optimizer,
            inrun.Utility(loss_fn, targets=parts),
            store=store,
            **flat(progress=False, **given),
        )
        self.taken = 0

    def step(self):
        ids = torch.arange(BATCH) + BATCH * (self.taken % 9)
        with self.attribution.batch(ids.tolist()):
            loss_fn(self.model, (self.x[ids], self.y[ids])).backward()
        nn.utils.clip_grad_value_(self.model.parameters(), 0.05)
        self.taken += 1
        try:
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad()

    def run(self, steps=STEPS):
        for _ in range(steps):
            self.step()
        return self


def tables(run):
    run.attribution.detach()
    return run.attribution.values(), run.attribution.ledger(), run.attribution.ledger("b")


@pytest.fixture(scope="module")
def in_memory():
    return tables(Run().run())


@pytest.mark.parametrize("capture", ["hold", "offload"])
@pytest.mark.parametrize("place", ["disk", "cpu"])
def test_values_are_those_of_memory_bit_for_bit(tmp_path, in_memory, capture, place):
    place = tmp_path if place == "disk" else place
    assert tables(Run(held_in=place, capture=capture).run()) == in_memory


@pytest.mark.parametrize("disk", [False, True])
def test_what_a_full_window_holds_is_said_beforehand(tmp_path, disk):
    """To within a step's terms: the sum holds one more or one less as it turns over."""
    run = Run(held_in=tmp_path if disk else None).run(2)
    kind = ("full_disk_bytes", "disk_bytes") if disk else ("full_bytes", "bytes")
    said = run.attribution.waiting
    term = 2 * 4 * sum(p.numel() for p in run.model.parameters())  # a gradient of each target
    heads = 100 * len(list(tmp_path.rglob("*.safetensors")))  # each file's own
    for _ in range(STEPS):
        run.step()
        if run.attribution.waiting["steps"] == WINDOW:
            held = run.attribution.waiting
            off = abs(held[kind[1]] - said[kind[0]])
            # how much is clipped differs by step, and with it who has a factor for each element
            assert off <= 1.05 * term + term / 4 + heads * WINDOW
            assert held["bytes"] <= 2 * term or not disk
            files = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
            assert held["disk_bytes"] == files
    assert run.attribution.waiting["steps"] == WINDOW
    assert said[kind[0]] > 2 * term


def test_inputs_that_are_parts_of_one_tensor_count_once_from_the_second_step_on():
    class Views(Run):
        def step(self):
            begin = BATCH * (self.taken % 9)
            self.taken += 1
            ids = slice(begin, begin + BATCH)
            with self.attribution.batch(range(begin, begin + BATCH)):
                F.mse_loss(self.model(self.wide[ids]), self.wide[ids, :3]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        def __init__(self):
            super().__init__(momentum_window=0)
            self.attribution.detach()
            self.model, self.wide = nn.Linear(40, 3), torch.randn(4000, 40)
            self.optimizer = torch.optim.AdamW(self.model.parameters())
            loss = lambda model, batch: F.mse_loss(model(batch), batch[:, :3])  # noqa: E731
            self.attribution = inrun.attach(
                self.model,
                self.optimizer,
                inrun.Utility(loss, torch.randn(8, 40)),
                momentum_window=WINDOW,
                options=inrun.Options(progress=False),
            )

    run = Views().run(2)
    said = run.attribution.waiting["full_bytes"]
    run.run(8)
    whole = run.wide.untyped_storage().nbytes()
    assert whole < run.attribution.waiting["bytes"] < 1.1 * whole
    assert abs(said - run.attribution.waiting["bytes"]) < 0.02 * whole


def test_files_are_there_while_steps_wait_and_gone_with_the_attribution(tmp_path):
    run = Run(held_in=tmp_path).run(3)
    assert list(tmp_path.rglob("*.safetensors"))
    run.attribution.detach()
    assert list(tmp_path.iterdir()) == []
    run = Run(held_in=tmp_path).run(3)
    del run
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="mine"), Run(held_in=tmp_path).attribution as _:
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_breaks_leaves_no_file_and_stores_what_its_steps_have(tmp_path):
    program = (
        "from tests.integration.test_payout_places import *\n"
        "run = Run(store=sys.argv[1] + '/run', held_in=sys.argv[1] + '/waits').run(6)\n"
        "raise ValueError"
    )
    (tmp_path / "waits").mkdir()
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert list((tmp_path / "waits").iterdir()) == []
    stored, run = inrun.load(tmp_path / "run"), Run().run(6)
    paid = run.attribution.values()
    assert stored.values()["value"].to_pylist() == paid["value"].to_pylist()
    assert stored.ledger()["step"].to_pylist() == list(range(1, 7))


def test_a_full_disk_is_said_and_loses_nothing_that_was_paid(tmp_path, in_memory):
    (tmp_path / "waits").mkdir()
    run = Run(store=tmp_path / "run", held_in=tmp_path / "waits").run(7)
    with files_of_at_most(200), pytest.raises(StoreError, match=r"cannot take.*smaller payout"):
        run.step()
    assert run.attribution.waiting["steps"] == 0
    assert list(tmp_path.rglob("*.safetensors")) == []
    ended = Run().run(8)
    ended.attribution._loop.booking.pay_out()
    for one in (run, ended):
        one.run(5)
    assert run.attribution.waiting["steps"] == WINDOW  # there is room again
    found, expected = tables(run), tables(ended)
    assert found[0].num_rows == expected[0].num_rows
    np.testing.assert_allclose(found[0].to_pandas(), expected[0].to_pandas(), rtol=1e-6, atol=1e-9)
    assert found[1]["step"].to_pylist() == list(range(1, 14))
    assert found[1]["samples"].to_pylist() == in_memory[1]["samples"].to_pylist()
    assert inrun.load(tmp_path / "run").values().num_rows == found[0].num_rows


def test_a_folder_that_is_taken_away_is_said_and_steps_keep_what_they_have(tmp_path, in_memory):
    (tmp_path / "waits").mkdir()
    run = Run(held_in=tmp_path / "waits").run(7)
    shutil.rmtree(tmp_path / "waits")
    with pytest.raises(StoreError, match="waits"):
        run.step()
    with pytest.raises(StoreError, match="waits"):
        run.step()
    (tmp_path / "waits").mkdir()
    run.attribution.detach()
    books = run.attribution.ledger()
    assert books["samples"].to_pylist() == in_memory[1]["samples"].to_pylist()[:9]
    assert books["paid_out"].to_pylist()[:3] == in_memory[1]["paid_out"].to_pylist()[:3]
    assert run.attribution.balance()["paid_out"] == pytest.approx(
        sum(in_memory[1]["paid_out"].to_pylist()[:3]), rel=1e-9
    )


def test_too_little_room_is_said_before_it_runs_out(monkeypatch):
    monkeypatch.setattr("inrun.momentum._tensor_store._free_memory", lambda device: 1000)
    run = Run().run(1)
    with pytest.warns(InRunWarning, match="momentum_window=4 will hold .* held_in='FOLDER'"):
        run.step()
    run.run(3)  # said once
