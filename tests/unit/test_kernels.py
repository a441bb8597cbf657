"""Compiled passes are their twins in torch operations, element by element."""

import os
import random
import signal

import pytest
import torch
import torch.nn.functional as F

from inrun import kernels
from inrun.capture._probe import Probe
from inrun.directions import ESTIMATORS, Gradients
from inrun.kernels import _numba, _passes
from inrun.optim import Move
from tests.unit.adam_moves import (
    TOLERANCE,
    adam_move,
    setting,
    settling_is_alike,
    slope_is_alike,
    validation,
)

pytest.importorskip("numba")


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    monkeypatch.setattr(_numba, "SHARE", 1000)


@pytest.fixture
def without(monkeypatch):
    """Turns compiled passes off."""
    return lambda: monkeypatch.setattr(_numba, "_installed", lambda: False)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"maximize": True, "eps": 1e-3}], ids=str)
def test_settling_is_its_twin(dtype, steps, K, options, threads, without):
    move, at = adam_move(dtype, steps, setting(**options)), validation(K, dtype)
    path = ESTIMATORS["path"]
    assert kernels.passes_for(move.gradient, move.state.m, at.opening) is _passes.LOOPS
    found = path.settled(move, at, 0.7, held=True)
    books = path.settled(move, at, 0.7, held=False)
    without()
    want = path.settled(move, at, 0.7, held=True)
    settling_is_alike(move, at, found, books, want)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("options", [{}, {"maximize": True, "b1": 0.5}], ids=str)
def test_the_slope_is_its_twin(dtype, steps, options, threads, without):
    move = adam_move(dtype, steps, setting(**options))
    found = move.slope().coefficient
    without()
    want = move.slope().coefficient
    slope_is_alike(found, want)


@pytest.mark.parametrize("shape", [(37, 211), (5000,), (16, 9, 5, 5)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_probe_and_norm_are_their_twins(shape, dtype, threads, without):
    parameter = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    probe = Probe(parameter, torch.Generator().manual_seed(1))
    found = probe.and_norm(parameter)
    without()
    want = probe.and_norm(parameter)
    scale = torch.stack((want[1], want[1]))
    assert float(((found - want) / scale).abs().max()) < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(5, 37, 211), (1, 300, 7), (3, 0, 90), (0, 4, 90)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_shares_of_a_gain_are_those_of_the_normalized_input(shape, dtype, threads):
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=generator) + 3).to(dtype)
    b = torch.randn(shape, generator=generator).to(dtype)
    normalized = F.layer_norm(x.double(), shape[-1:], eps=1e-3)
    want = (normalized * b.double()).sum(1)
    found = kernels.gain_shares(x, b, 1e-3)
    assert found.dtype == dtype
    error = (found.double() - want).abs()
    assert bool((error < 500 * torch.finfo(dtype).eps * (1 + want.abs())).all())


def unaligned(t):
    """The same numbers, at an address that no file would mind."""
    held = torch.zeros(t.nbytes + 1, dtype=torch.uint8)
    found = torch.from_numpy(held.numpy()[1:].view(t.numpy().dtype)).view(t.shape)
    assert not found.numpy().flags.aligned
    return found.copy_(t)


def test_no_bit_depends_on_where_numbers_lie():
    h, draw = setting(decay=0.1), random.Random(0)
    move, at = adam_move(torch.float32, 9, h), validation(2, torch.float32)
    move = Move(move.rule, move.weight[:4], move.gradient[:4], _rows(move.state, 4), h)
    at = Gradients(at.opening[:, :4].contiguous(), at.closing[:, :4].contiguous())
    path, probe = ESTIMATORS["path"], Probe(move.weight, torch.Generator().manual_seed(1))

    def everything(move, at):
        told = path.settled(move, at, 0.7, held=True)
        gains = kernels.gain_shares(at.opening, at.closing, 1e-5)
        return [*told, move.slope().coefficient, probe.and_norm(move.weight), gains]

    want, kept = everything(move, at), []
    for number in range(400):
        place = unaligned if number % 10 == 0 else torch.clone
        state = move.state._replace(m=place(move.state.m), v=place(move.state.v))
        elsewhere = Move(move.rule, place(move.weight), place(move.gradient), state, h)
        found = everything(elsewhere, Gradients(*(t.clone() for t in at if t is not None)))
        assert all(a.equal(b) for a, b in zip(found, want, strict=True))
        kept.append(torch.empty(draw.randint(1, 5000)))  # so that the next ones lie elsewhere
        del kept[: len(kept) - draw.randint(0, 50)]


def _rows(state, rows):
    return state._replace(m=state.m[:rows], v=state.v[:rows])


def test_what_is_not_a_number_stays_so():
    parameter = torch.randn(40, 40)
    parameter[7, 3] = float("nan")
    assert not bool(Probe(parameter, torch.Generator()).and_norm(parameter).isfinite().any())
    parameter[7, 3] = float("inf")
    assert not bool(Probe(parameter, torch.Generator()).and_norm(parameter).isfinite().all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(_numba, "SHARE", 1000)
    ask = lambda: _numba.over_parts(lambda begin, end: end - begin, 9000)  # noqa: E731
    assert ask() == [3000] * 3
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a pool without threads would wait for ever
        os._exit(0 if ask() == [3000] * 3 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_only_plain_arrays_are_taken():
    t = torch.randn(40, 40)
    assert kernels.takes(t, t)
    assert not kernels.takes(t, t.T)
    assert not kernels.takes(t, t.double())
    assert not kernels.takes(t.bfloat16())
    assert not kernels.takes(t[0, :1])
    assert not kernels.takes(t, torch.zeros(()).expand(40, 40))
    assert not kernels.takes(torch.empty(40, 40, device="meta"))
