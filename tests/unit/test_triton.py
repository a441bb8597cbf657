"""Triton's passes without a GPU: they are their twins, and a real device's compiler takes them.

The first is told by Triton's interpreter, in a process of its own; the second by compiling for a
device that is not there, as if for a launch.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inrun.directions import ESTIMATORS
from inrun.kernels import _launched, _numba, _passes, _trial, _triton
from tests.unit.adam_moves import adam_move, setting, validation

pytest.importorskip("triton", reason="Triton is not installed here: it is for Linux alone")
INTERPRETED = Path(__file__).with_name("interpreted_triton.py")


def test_in_triton_s_interpreter_every_pass_is_its_twin():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)]
    told = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=INTERPRETED.parents[2],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


class Absent:
    """A GPU that is not there, as Triton asks for it."""

    def __init__(self, capability):
        self._capability = capability

    def get_current_device(self):
        return self._capability  # a number of its own: what was compiled is kept by it

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


class Compiled:
    """A kernel that is compiled for each launch, as it would be there, and not run."""

    def __init__(self, kernel):
        self._kernel, self.made = kernel, []

    def __getitem__(self, grid):
        def compile_only(*arguments, **options):
            self.made.append(self._kernel.warmup(*arguments, grid=grid, **options))

        return compile_only


@pytest.fixture(params=[80, 90])
def kernels(request, monkeypatch, tmp_path):
    from triton.runtime import driver

    from inrun.kernels import _on_gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Absent(request.param))
    monkeypatch.setattr(_triton, "_failures", [])
    for name in ("settle", "slope"):
        monkeypatch.setattr(_on_gpu, name, Compiled(getattr(_on_gpu, name)))
    yield _on_gpu
    assert {made.metadata.target.arch for made in _on_gpu.settle.made} == {request.param}


def aligned(array):
    """On an address as a GPU's allocator gives them."""
    room = torch.zeros(array.nbytes + 64, dtype=torch.uint8)
    begin = -room.data_ptr() % 64
    kind = torch.from_numpy(array).dtype
    return (
        room[begin : begin + array.nbytes]
        .view(kind)
        .view(array.shape)
        .copy_(torch.from_numpy(array))
    )


def everything(dtype, size=4096, K=2, **numbers):
    """Launches both; all tensors as they come from an allocator."""
    rng = np.random.default_rng(0)
    kind = torch.empty((), dtype=dtype).numpy().dtype
    draw = lambda *shape: aligned(rng.random(shape).astype(kind))  # noqa: E731
    g, w, m, v, opening, closing = *(draw(size) for _ in range(4)), draw(K, size), draw(K, size)
    settling = _trial.SETTLING._replace(**numbers)
    did = _launched.settle_adam(g, w, m, v, opening, closing, draw(K, size), settling)
    slope = _launched.adam_slope(g, m, v, _trial.SLOPE._replace(**numbers))
    assert (did.shape, did.dtype, slope.shape, slope.dtype) == (
        (2, K),
        torch.float64,
        (size,),
        dtype,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_compile_for_a_real_device(dtype, kernels):
    everything(dtype)
    for kernel in (kernels.settle, kernels.slope):
        ((made),) = kernel.made
        assert made.asm["cubin"].startswith(b"\x7fELF")
        assert f".target sm_{made.metadata.target.arch}" in made.asm["ptx"]
        code = re.sub(r"//.*", "", made.asm["ptx"])
        doubles = set(re.findall(r"\b\w+(?:\.\w+)*\.f64\b", code))
        assert bool(doubles) == (dtype == torch.float64), doubles
        assert "ld.global.v" in code  # several elements at a time
        assert not re.search(r"\b(atom|red)\.", code)  # sums would depend on who comes first
        assert "fma" not in code  # see `launched`


def test_another_step_s_numbers_compile_nothing(kernels):
    for number in (0.0, 1.0, 16.0, 1e-30, -0.3):
        everything(torch.float32, gain=number, bend=number, eps=number)
    assert len({id(made) for made in kernels.settle.made}) == 1
    assert len({id(made) for made in kernels.slope.made}) == 1


def test_models_of_any_size_have_few_variants(kernels):
    for size in (1, 16, 48, 768, 3072, 4096, 5, 77):
        everything(torch.float32, size, K=1)
    assert len({id(made) for made in kernels.settle.made}) <= 3


def test_places_are_counted_in_64_bits(kernels):
    """Of a parameter, or of several targets' gradients, with more elements than 32 bits count."""
    settling, slope = (_triton.bits(n, torch.float32) for n in (_trial.SETTLING, _trial.SLOPE))
    options = {"BLOCK": 1024, "enable_fp_fusion": False}
    for size in (2**31 - 16, 2**31 + 16):
        pointers = [torch.float32] * 8
        kernels.settle[(1,)](*pointers, size, 3, *settling, WRITES=True, **options)
        kernels.slope[(1,)](*pointers[:4], size, *slope, **options)
    for made in kernels.settle.made + kernels.slope.made:
        ttir = made.asm["ttir"]
        assert re.search(r"arith.muli .* : i64", ttir)
        offsets = re.findall(r"tt.addptr .* : tensor<1024x!tt.ptr<f32>>, tensor<1024x(i\d+)>", ttir)
        assert set(offsets) == {"i64"}


class Seen(TorchDispatchMode):
    """Every operation that torch runs, with what it is given."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("by_triton", [True, False])
def test_nothing_waits_for_the_device(by_triton, monkeypatch):
    monkeypatch.setattr(_numba, "_installed", lambda: False)
    if by_triton:
        monkeypatch.setattr(_passes, "GPU", "cpu")
        monkeypatch.setattr(_trial, "passed", lambda *_: True)
        monkeypatch.setattr(_triton, "launched", lambda *_, **__: True)
    move, at = adam_move(torch.float32, 9, setting(decay=0.1)), validation(2, torch.float32)
    with Seen() as seen:
        ESTIMATORS["path"].settled(move, at, 0.7, held=True)
        move.slope()
    waiting = {"_local_scalar_dense", "_to_copy", "nonzero", "equal", "lift_fresh"}
    assert waiting.isdisjoint(seen.names), waiting & set(seen.names)
    if by_triton:  # room, the sum over programs, a view each for momentum and decay, room
        assert seen.names == ["empty_like", "new_empty", "sum", *["select"] * 2, "empty_like"]
