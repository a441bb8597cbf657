"""Starting a Triton kernel over flat arrays, and doing without where Triton cannot.

PyTorch's builds for GPUs bring Triton along. It compiles when a kernel is first launched, which may
fail on a machine that lacks a part of what that takes: then nothing is launched any more, a warning
says so once, and operations of torch do the work.

Nothing here waits for the device: numbers go in as arguments, and what comes out stays there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrun.errors import InRunWarning

BLOCK = 1024  # elements of one program
SWITCH = "INRUN_TRITON"  # 0 keeps Triton out
_INTEGERS = {torch.float32: np.int32, torch.float64: np.int64}
_failures: list[str] = []


@cache
def _installed() -> bool:
    try:
        from inrun.kernels import _on_gpu  # noqa: F401
    except ImportError:  # not there, or not for this Python
        return False
    except Exception as error:  # there, and broken
        give_up(f"{type(error).__name__}: {error}")
        return False
    return True


def available() -> bool:
    """Whether kernels can be launched, as far as is known by now."""
    return not _failures and os.environ.get(SWITCH) != "0" and _installed()


def programs(size: int) -> int:
    """How many it takes for so many elements."""
    return -(-size // BLOCK)


def bits(numbers: Sequence[float], dtype: torch.dtype) -> list[int]:
    """Numbers in a precision, each as the integer of the same bits.

    Triton takes in every Python float as one of 32 bits, and integers whole.
    """
    kind = _INTEGERS[dtype]
    exact = np.array(numbers, np.float32 if kind is np.int32 else np.float64)
    found: list[int] = exact.view(kind).tolist()
    return found


def launched(kernel: str, over: Tensor, *arguments: Any, **options: Any) -> bool:
    """Starts a kernel of `_on_gpu`; whether it could be started.

    Args:
        kernel: its name.
        over: it runs on this tensor's device, one program for each `BLOCK` of `size` elements.
        arguments: the kernel's.
        options: those of its arguments that are compiled in.
    """
    from inrun.kernels import _on_gpu

    # products are rounded before they are added to, as in the loops: where the second moment is
    # the present gradient's alone, what is left of the first is 0, and not its rounding
    options |= {"BLOCK": BLOCK, "enable_fp_fusion": False}
    try:
        with torch.cuda.device_of(over):
            getattr(_on_gpu, kernel)[(programs(over.numel()),)](*arguments, **options)
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        give_up(f"{type(error).__name__}: {error}")
        return False
    return True


def give_up(why: str) -> None:
    """Nothing is launched from now on; says so, once."""
    _failures.append(why)
    if len(_failures) == 1:
        warnings.warn(
            f"Triton cannot do Adam's passes on this machine ({why[:500]}). Operations of torch do "
            "them instead: the same values in more time. To mend it see whether "
            f"torch.compile works here; {SWITCH}=0 in the environment keeps Triton out.",
            InRunWarning,
            stacklevel=2,
        )
