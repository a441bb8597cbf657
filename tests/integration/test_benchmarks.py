"""Benchmarks fit the library, and the games that they play out are the games that they say."""

import numpy as np
import pytest
import torch
from benchmarks.interaction.cell import SAMPLES, Cell, Setting
from benchmarks.overhead.__main__ import grid
from benchmarks.overhead.cell import Cell as Cost
from benchmarks.overhead.cell import times
from benchmarks.overhead.methods import METHODS, Size, method_of

MINIATURE = Size(layers=1, width=64, batch=2, tokens=8, vocabulary=50)


@pytest.fixture(autouse=True)
def _random_text(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(50, (40, 8), generator=generator), torch.randint(50, (2, 8))
    monkeypatch.setattr(Size, "text", lambda self: text)


def test_every_way_to_train_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.overhead.cell.WARM_UP", 1)
    monkeypatch.setattr("benchmarks.overhead.cell.TURNS", 2)
    for name in METHODS:
        found = times(MINIATURE, method_of(name))
        assert all(with_it > 0 for with_it in found["seconds"])
        ratios = [a / b for a, b in zip(found["seconds"], found["plain"], strict=True)]
        assert found["ratio"] == ratios
    assert {Cost.of(key).method for key in grid(small=False, large=False)} == {*METHODS, "plain"}


@pytest.mark.parametrize(("loss", "interacts"), [("cross-entropy", False), ("info-nce", True)])
def test_leaving_rows_out_is_the_game_of_own_slots_where_nothing_interacts(loss, interacts):
    cell = Cell(Setting(loss, "adamw"))
    batch = tuple(t[:SAMPLES] for t in cell.data)
    truths = cell._check(batch)["truths"]
    assert np.allclose(truths["own slots"], truths["left out"], rtol=1e-6) is not interacts
    assert not np.allclose(truths["left out"], truths["left out, divided anew"], rtol=1e-6)
