"""Passes over large arrays as one loop, compiled by `torch.compile`: C++ on a CPU, Triton on a GPU.

Written in torch operations, an update rule's formulas are some twenty passes over a parameter's
arrays; compiled, each array is read once. The function is the definition: eager operations run it
wherever compiling does not pay (arrays below `LARGE`) or is not possible (no compiler).

Compiling takes seconds, so it happens once per function, precision and number of arguments; sizes
are not compiled in. The first use compares the two on a sample of the arrays: a wrong compiler must
not become wrong values. Where it fails or differs, a warning says so once per process, and eager
operations go on. Sums run in double precision and in one order, wherever the arrays lie.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from inrun.errors import InRunWarning

LARGE = 262_144  # elements; smaller arrays save less than the seconds that compiling takes
SAMPLE = 4_099  # elements that the first use is compared on
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-9}
SWITCH = "INRUN_COMPILE"  # 0 in the environment keeps compilers out
_passed: dict[object, bool] = {}
_failures: list[str] = []


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any] | None:
    """The function as one compiled loop; None where eager operations are to run it.

    Args:
        function: of flat tensors, elementwise but for sums, in torch operations alone. It may
            write to its arguments.
        arguments: those that it is to be called with: flat tensors of one size, tuples of such,
            functions, and numbers as tensors without axes.
    """
    arrays = [t for t in _tensors(arguments) if t.ndim]
    if _failures or not _takes(arrays) or not _can(arrays[0].device.type):
        return None
    key = function, arrays[0].dtype, arrays[0].device, _shape_of(arguments)
    if key not in _passed:
        _passed[key] = _agrees(function, arguments)
    return _call(function) if _passed[key] else None


def _takes(arrays: list[Tensor]) -> bool:
    """Whether they are large and plain, of one precision, device and layout."""
    first = arrays[0]
    return (
        first.numel() >= LARGE
        and first.dtype in CLOSE
        and all(
            type(t) in (Tensor, torch.nn.Parameter)
            and (t.device, t.dtype, t.shape) == (first.device, first.dtype, first.shape)
            and t.is_contiguous()
            for t in arrays
        )
    )


def _can(device: str) -> bool:
    return device in ("cpu", "cuda") and os.environ.get(SWITCH) != "0" and _compiler(device)


@cache
def _compiler(device: str) -> bool:
    """Whether what `torch.compile` needs for a device is there, as far as can be told at once."""
    if device == "cuda":
        return importlib.util.find_spec("triton") is not None
    names = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")
    return any(shutil.which(name) for name in names if name)


@cache
def _call(function: Callable[..., Any]) -> Callable[..., Any]:
    fast: Callable[..., Any] = torch.compile(function, dynamic=True, fullgraph=True)
    return torch.no_grad()(fast)


def _agrees(function: Callable[..., Any], arguments: Any) -> bool:
    """Whether a sample of the arrays comes out as in eager operations; if not, it was said."""
    ways = [_sampled(arguments), _sampled(arguments)]
    try:
        with torch.no_grad():
            results = [function(*ways[0]), _call(function)(*ways[1])]
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        _give_up(f"{type(error).__name__}: {error}")
        return False
    want, found = (list(_tensors((way, made))) for way, made in zip(ways, results, strict=True))
    close = CLOSE[next(t.dtype for t in want if t.ndim)]
    for a, b in zip(want, found, strict=True):
        size = float(torch.where(torch.isfinite(a), a, 0.0).abs().max())
        if not torch.allclose(b, a, rtol=close, atol=close * size, equal_nan=True):
            _give_up("a sample came out otherwise than in eager operations")
            return False
    return True


def _sampled(value: Any) -> Any:
    """Copies of a few thousand elements of each array, spread over it."""
    if isinstance(value, Tensor) and value.ndim:
        return value.detach()[:: max(1, len(value) // SAMPLE)][:SAMPLE].clone()
    return tuple(_sampled(part) for part in value) if isinstance(value, tuple) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _shape_of(value: Any) -> object:
    """How arguments are nested, which is compiled in."""
    if isinstance(value, tuple | list):
        return tuple(_shape_of(part) for part in value)
    return None if isinstance(value, Tensor) else value


def _give_up(why: str) -> None:
    """Nothing is compiled from now on; says so, once."""
    _failures.append(why)
    if len(_failures) == 1:
        warnings.warn(
            f"torch.compile cannot make one loop of the optimizer's pass here ({why[:500]}). Eager "
            "operations run instead: the same values in more time. See whether torch.compile works "
            f"on this machine at all; {SWITCH}=0 in the environment leaves it out.",
            InRunWarning,
            stacklevel=2,
        )
