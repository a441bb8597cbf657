"""Benchmarks fit the library, and the games that they play out are the games that they say."""

import numpy as np
import pytest
import torch
from benchmarks.interaction.cell import SAMPLES, Cell, Setting
from benchmarks.overhead.cell import _parts, _times
from benchmarks.overhead.methods import METHODS, PROFILED, Size
from benchmarks.overhead.parts import PARTS

MINIATURE = Size(layers=1, width=64, batch=2, tokens=8, vocabulary=50)


@pytest.fixture(autouse=True)
def _random_text(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(50, (40, 8), generator=generator), torch.randint(50, (2, 8))
    monkeypatch.setattr(Size, "text", lambda self: text)


def test_every_way_to_train_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.overhead.cell.WARM_UP", 1)
    monkeypatch.setattr("benchmarks.overhead.cell.ROUNDS", 2)
    device = torch.device("cpu")
    methods = {name: kind(MINIATURE, device) for name, kind in METHODS.items()}
    seconds = _times(MINIATURE, device, methods)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(METHODS, 2)
    seen = {part for name in PROFILED for part in _parts(MINIATURE, device, methods[name])}
    too_small = {"factorizing directions", "low-rank contraction"}
    assert seen == {part for _, _, part in PARTS} - too_small
    for method in methods.values():
        method.detach()


@pytest.mark.parametrize(("loss", "interacts"), [("cross-entropy", False), ("info-nce", True)])
def test_leaving_rows_out_is_the_game_of_own_slots_where_nothing_interacts(loss, interacts):
    cell = Cell(Setting(loss, "adamw"))
    batch = tuple(t[:SAMPLES] for t in cell.data)
    truths = cell._check(batch)["truths"]
    assert np.allclose(truths["own slots"], truths["left out"], rtol=1e-6) is not interacts
    assert not np.allclose(truths["left out"], truths["left out, divided anew"], rtol=1e-6)
