"""Compiling a loop when it is first run, and running it over a flat array on torch's threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST = 256  # elements; below it a call costs what it saves
SHARE = 262_144  # elements that are worth a thread of their own

# Sums may be taken in another order, as BLAS does, but always in the same one; numbers that are not
# finite keep their meaning.
_FASTMATH = {"reassoc", "nsz"}


@cache
def _installed() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:  # not there, or not for this NumPy
        return False
    return True


def takes(*tensors: Tensor) -> bool:
    """Whether loops can run over these: Numba is there, and they are plain, large and on the CPU.

    Args:
        tensors: all that a loop reads and writes; the first tells how large they are.
    """
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.numel() >= SMALLEST
        and flat_alike(*tensors)
        and _installed()
    )


def flat_alike(*tensors: Tensor) -> bool:
    """Whether compiled code can read them side by side: plain, one precision, device and layout."""
    first = tensors[0]
    return first.dtype in (torch.float32, torch.float64) and all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device == first.device
        and t.dtype == first.dtype
        and t.is_contiguous()
        for t in tensors
    )


def array(t: Tensor) -> NDArray[Any]:
    """The tensor's numbers for a loop to read.

    Aligned, or the loop would be another one, which adds up in another order: what was read from a
    file need not be.
    """
    found: NDArray[Any] = t.detach().numpy()
    return found if found.flags.aligned else found.copy()


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """The loop as machine code for whatever types it is called with."""
    import numba

    made: Callable[..., Any] = numba.njit(nogil=True, fastmath=_FASTMATH, error_model="numpy")(loop)
    return made


def over_parts(run: Callable[[int, int], Any], size: int) -> Sequence[Any]:
    """`run(begin, end)` of consecutive parts, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), max(1, size // SHARE))
    cuts = [size * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [run(0, size)]
    return list(_pool(threads).map(run, cuts[:-1], cuts[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="inrun-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along
