"""What is compiled is what eager operations make, and nothing that fails stays unsaid."""

import random

import pytest
import torch

from inrun import kernels
from inrun.directions import ESTIMATORS, Gradients
from inrun.errors import InRunWarning
from inrun.optim import Move
from tests.unit.optim.adam_moves import (
    TOLERANCE,
    adam_move,
    setting,
    settling_is_alike,
    validation,
)

compilers = pytest.mark.skipif(not kernels._compiler("cpu"), reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Small arrays are large, and this process has compiled nothing yet."""
    monkeypatch.setattr(kernels, "LARGE", 5000)
    monkeypatch.setattr(kernels, "_passed", {})
    monkeypatch.setattr(kernels, "_failures", [])


def eager(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "0")


@compilers
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", [{}, {"maximize": True, "decay": 0.0, "apart": 0.1}], ids=str)
def test_direction_and_ledger_are_those_of_eager_operations(dtype, options, monkeypatch):
    cases = [
        (adam_move(dtype, steps, setting(**options)), validation(K, dtype))
        for steps, K in ((1, 1), (2, 3), (300, 3))
    ]
    path = ESTIMATORS["path"]
    found = [
        [path.formed_after_step(*case, 0.7, held=held) for held in (True, False)] for case in cases
    ]
    assert list(kernels._passed.values()) == [True, True]  # with a direction and without
    eager(monkeypatch)
    for case, (with_it, without) in zip(cases, found, strict=True):
        settling_is_alike(*case, with_it, without, path.formed_after_step(*case, 0.7, held=True))


@compilers
def test_no_bit_depends_on_where_numbers_lie():
    h, draw = setting(apart=0.1), random.Random(0)
    move, at = adam_move(torch.float32, 9, h), validation(2, torch.float32)
    path = ESTIMATORS["path"]
    want, kept = path.formed_after_step(move, at, 0.7, held=True), []
    assert list(kernels._passed.values()) == [True]
    for number in range(200):
        place = unaligned if number % 10 == 0 else torch.clone
        state = move.state._replace(m=place(move.state.m), v=place(move.state.v))
        elsewhere = Move(move.rule, place(move.weight), place(move.gradient), state, h)
        found = path.formed_after_step(
            elsewhere, Gradients(at.opening.clone(), place(at.closing)), 0.7, held=True
        )
        assert all(a.equal(b) for a, b in zip(found, want, strict=True))
        kept.append(torch.empty(draw.randint(1, 5000)))  # so that the next ones lie elsewhere
        del kept[: len(kept) - draw.randint(0, 50)]


def unaligned(t):
    """The same numbers, at an address that no file would mind."""
    held = torch.zeros(t.nbytes + 1, dtype=torch.uint8)
    found = torch.from_numpy(held.numpy()[1:].view(t.numpy().dtype)).view(t.shape)
    assert not found.numpy().flags.aligned
    return found.copy_(t)


def double(values, into):
    into[0].copy_(2 * values)
    return (values.sum(),)


def test_what_cannot_be_compiled_is_said_once_and_left_to_eager_operations(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no linker")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(kernels, "_compiler", lambda device: True)
    kernels._call.cache_clear()
    values = torch.ones(6000), (torch.empty(6000),)
    with pytest.warns(InRunWarning, match="no linker") as told:
        assert kernels.compiled(double, *values) is None
        assert kernels.compiled(double, *values) is None
    assert len(told) == 1


def test_a_compiler_that_computes_something_else_is_not_used(monkeypatch):
    def wrong(function, **options):
        return lambda values, into: (into[0].copy_(2.01 * values), (values.sum(),))[1]

    monkeypatch.setattr(torch, "compile", wrong)
    monkeypatch.setattr(kernels, "_compiler", lambda device: True)
    kernels._call.cache_clear()
    with pytest.warns(InRunWarning, match="otherwise"):
        assert kernels.compiled(double, torch.ones(6000), (torch.empty(6000),)) is None


@compilers
def test_only_large_plain_arrays_are_taken(monkeypatch):
    monkeypatch.setattr(kernels, "_passed", {})
    monkeypatch.setattr(kernels, "_agrees", lambda function, arguments: True)
    large = torch.ones(6000)
    assert kernels.compiled(double, large, (large,)) is not None
    assert kernels.compiled(double, large.double(), (large.double(),)) is not None
    for other in (large[:10], large.bfloat16(), torch.ones(12000)[::2], large.to("meta")):
        assert kernels.compiled(double, other, (other,)) is None
        assert kernels.compiled(double, large, (other,)) is None
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert kernels.compiled(double, large, (large,)) is None
