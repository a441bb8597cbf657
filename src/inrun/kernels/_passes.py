"""Which compiled passes run over given tensors: loops on a CPU, kernels on a GPU, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from inrun.kernels import _launched, _numba, _settled, _slope, _trial, _triton

GPU = "cuda"  # what torch calls AMD's too


class Passes(NamedTuple):
    """Adam's compiled passes; see `_settled.settle_adam` and `_slope.adam_slope`.

    What they give stays on the tensors' device. None where a pass turned out not to run there, and
    nothing was written.
    """

    settle_adam: Callable[..., Tensor | None]
    adam_slope: Callable[..., Tensor | None]


LOOPS = Passes(_settled.settle_adam, _slope.adam_slope)
LAUNCHES = Passes(_launched.settle_adam, _launched.adam_slope)


def passes_for(*tensors: Tensor) -> Passes | None:
    """The passes that take these tensors; None leaves them to operations of torch.

    Args:
        tensors: all that a pass reads and writes; the first tells how large they are.
    """
    if _numba.takes(*tensors):
        return LOOPS
    first = tensors[0]
    there = first.device.type == GPU and first.numel() > 0 and _numba.flat_alike(*tensors)
    if there and _triton.available() and _trial.passed(first.device, first.dtype):
        return LAUNCHES
    return None
