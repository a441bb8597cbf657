"""The overhead benchmark fits the library: what it times is there, every method takes its steps."""

import pytest
import torch
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
