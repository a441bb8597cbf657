"""Triton's passes are their twins: run by test_triton.py, in a process whose Triton interprets.

The interpreter plays a kernel's programs one after another with NumPy, on tensors of the CPU, which
stand for a GPU's here. Triton must be told before it is imported: hence the process of its own.
"""

import os

import pytest
import torch
from torch import nn

import inrun
from inrun.directions import ESTIMATORS, Gradients
from inrun.errors import InRunWarning
from inrun.kernels import _launched, _numba, _passes, _trial, _triton
from inrun.optim import Move
from tests.unit.adam_moves import (
    SHAPE,
    TOLERANCE,
    adam_move,
    setting,
    settling_is_alike,
    slope_is_alike,
    validation,
)

PATH = ESTIMATORS["path"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """The CPU counts as a GPU."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr(_passes, "GPU", "cpu")
    monkeypatch.setattr(_numba, "_installed", lambda: False)
    monkeypatch.setattr(_triton, "_failures", [])
    _trial.passed.cache_clear()


@pytest.fixture
def without(monkeypatch):
    """Turns Triton off."""
    return lambda: monkeypatch.setenv(_triton.SWITCH, "0")


def taken(move, at):
    state = move.state
    return _passes.passes_for(move.gradient, move.weight, state.m, state.v, at.opening, at.closing)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("options", [{}, {"decay": 0.1}, {"maximize": True, "eps": 1e-3}], ids=str)
def test_settling_is_its_twin(dtype, steps, K, options, without):
    move, at = adam_move(dtype, steps, setting(**options)), validation(K, dtype)
    assert taken(move, at) is _passes.LAUNCHES
    found, books = (PATH.settled(move, at, 0.7, held=held) for held in (True, False))
    without()
    assert taken(move, at) is None
    settling_is_alike(move, at, found, books, PATH.settled(move, at, 0.7, held=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("options", [{}, {"maximize": True, "b1": 0.5}], ids=str)
def test_the_slope_is_its_twin(dtype, steps, options, without):
    move = adam_move(dtype, steps, setting(**options))
    found = move.slope().coefficient
    without()
    want = move.slope().coefficient
    assert not found.equal(want)  # to rounding: another order of operations
    slope_is_alike(found, want)


@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, 2048, 2049])
def test_any_length_is_taken_whole(size, without):
    h = setting(decay=0.1)
    move, at = adam_move(torch.float64, 9, h, (size,)), validation(2, torch.float64, (size,))
    if size > 3:  # or nothing was ever touched, and the slope is 0
        assert float(move.slope().coefficient[-1]) != 0
    found, books = (PATH.settled(move, at, 0.7, held=held) for held in (True, False))
    slope = move.slope().coefficient
    without()
    want = PATH.settled(move, at, 0.7, held=True)
    torch.testing.assert_close(found.direction, want.direction, rtol=1e-11, atol=1e-18)
    slope_is_alike(slope, move.slope().coefficient)
    for a in (found, books):
        torch.testing.assert_close(a.momentum, want.momentum, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(a.decay, want.decay, rtol=1e-9, atol=1e-15)


def test_slices_of_larger_arrays_are_taken(without):
    h, begin, end = setting(decay=0.1), 1, 3000
    move, at = adam_move(torch.float32, 9, h), validation(1, torch.float32)

    def cut(t):
        return t.reshape(-1)[begin:end]

    at = Gradients(*(cut(t).unsqueeze(0) for t in (at.opening, at.closing)))
    state = move.state._replace(m=cut(move.state.m), v=cut(move.state.v))
    move = Move(move.rule, cut(move.weight), cut(move.gradient), state, h)
    assert move.weight.storage_offset() == begin
    found, books = (PATH.settled(move, at, 0.7, held=held) for held in (True, False))
    without()
    settling_is_alike(move, at, found, books, PATH.settled(move, at, 0.7, held=True))


@pytest.mark.parametrize("which", ["gradient", "weight", "m", "v", "opening"])
def test_what_is_not_a_number_stays_so(which):
    move, at = adam_move(torch.float32, 9, setting(decay=0.1)), validation(1, torch.float32)
    arrays = {"gradient": move.gradient, "weight": move.weight, "m": move.state.m}
    arrays |= {"v": move.state.v, "opening": at.opening[0]}
    arrays[which][7, 3] = float("nan")
    pulled = PATH.settled(move, at, 1.0, held=True)
    assert not bool(pulled.decay.isfinite()) or not bool(pulled.momentum.isfinite())
    if which != "weight":
        assert pulled.direction.isnan().sum() == 1
        assert bool(pulled.direction[0, 7, 3].isnan())
    if which in ("gradient", "m", "v"):
        assert bool(move.slope().coefficient[7, 3].isnan())


def test_only_plain_arrays_are_taken():
    t = torch.randn(40, 40)
    assert _passes.passes_for(t, t) is _passes.LAUNCHES
    assert _passes.passes_for(t[0, :1]) is _passes.LAUNCHES
    assert _passes.passes_for(t, t.T) is None
    assert _passes.passes_for(t, t.double()) is None
    assert _passes.passes_for(t.bfloat16()) is None
    assert _passes.passes_for(t[:0]) is None
    assert _passes.passes_for(t, torch.zeros(()).expand(40, 40)) is None
    assert _passes.passes_for(torch.empty(40, 40, device="meta")) is None
    assert _passes.passes_for(t, torch.empty(40, 40, device="meta")) is None


class Fails:
    """A kernel that a compiler gives up on, after so many launches."""

    def __init__(self, kernel, after=0):
        self._kernel, self._left = kernel, after

    def __getitem__(self, grid):
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("no such compiler")
        return self._kernel[grid]


@pytest.mark.parametrize("kernel", ["settle", "slope"])
@pytest.mark.parametrize("launches", [0, 1])  # in the trial, or after it
def test_what_cannot_be_compiled_is_done_by_the_twin_and_said_once(
    kernel, launches, without, monkeypatch
):
    from inrun.kernels import _on_gpu

    monkeypatch.setattr(_on_gpu, kernel, Fails(getattr(_on_gpu, kernel), launches))
    move, at = adam_move(torch.float32, 9, setting(decay=0.1)), validation(2, torch.float32)
    with pytest.warns(InRunWarning, match="no such compiler") as told:
        found = [PATH.settled(move, at, 0.7, held=True) for _ in range(2)]
        slopes = [move.slope().coefficient for _ in range(2)]
    assert len(told) == 1
    without()
    want = PATH.settled(move, at, 0.7, held=True)
    last = found[1] if kernel == "settle" or not launches else want
    assert all(a.equal(b) for a, b in zip(last, want, strict=True))
    assert all(slope.equal(move.slope().coefficient) for slope in slopes)


def test_a_compiler_that_computes_something_else_is_not_trusted(without, monkeypatch):
    real = _launched.adam_slope
    monkeypatch.setattr(_launched, "adam_slope", lambda *given: real(*given).mul_(1.01))
    move, at = adam_move(torch.float32, 9, setting()), validation(1, torch.float32)
    with pytest.warns(InRunWarning, match=r"trial on cpu in torch.float32 was off by 0.01"):
        assert taken(move, at) is None
    found = PATH.settled(move, at, 0.7, held=True)
    without()
    assert found.direction.equal(PATH.settled(move, at, 0.7, held=True).direction)


def test_numbers_keep_all_their_digits(without):
    """Each is as good as a double where arrays are: a rounded rate would be off by 1e-8."""
    move = adam_move(torch.float64, 40, setting(lr=1 / 3, b1=0.9 + 1e-12), SHAPE)
    found = move.slope().coefficient
    without()
    want = move.slope().coefficient
    torch.testing.assert_close(found, want, rtol=1e-13, atol=1e-14 * float(want.abs().max()))


STEPS, PARAMETERS = 4, 4
SLOPES = {"hold": 0, "stream": PARAMETERS * (STEPS - 1)}  # without moments there is no array yet


@pytest.mark.parametrize("capture", SLOPES)
def test_a_run_s_values_and_books_are_the_same(capture, without, monkeypatch):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5)).double()
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(5, (40,))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)

        def loss_fn(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        utility = inrun.Utility(loss_fn, (x[32:], y[32:]))
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            options=inrun.Options(capture=capture, progress=False, smoothed_steps=0),
        )
        for ids in torch.arange(8 * STEPS).split(8):
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
        books = attribution.ledger()
        columns = [books[name] for name in ("samples", "momentum", "weight_decay", "residual")]
        return [c.to_pylist() for c in [attribution.values()["value"], *columns]]

    launches, real = [], _triton.launched

    def noted(kernel, *arguments, **options):
        launches.append(kernel)
        return real(kernel, *arguments, **options)

    monkeypatch.setattr(_triton, "launched", noted)
    found = run()
    assert launches.count("settle") == 1 + STEPS * PARAMETERS  # and one in the trial
    assert launches.count("slope") == 1 + SLOPES[capture]
    without()
    for a, b in zip(found, run(), strict=True):
        assert a == pytest.approx(b, rel=1e-7, abs=1e-12)
