"""Curvature at kinks: what a Hessian of ReLUs leaves out, put back as its local mean.

relu''(z) is 0 but for a spike at z = 0, so autograd's second derivative says that a unit never
switches. Along a run units do switch, each time with a jump of the gradient. A linear method cannot
say which sample makes which unit switch; it can say what switching does on the average, if the
spike counts as a bell of some width:

    relu''(z) ~ exp(-z^2 / 2 h^2) / (h sqrt(2 pi)),    h = width * root mean square of z

Summed over rows and steps that is a kernel estimate of how dense z is at 0. Values and first
derivatives stay what they are: training is replayed as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# not those that only work in place: their result is another name of what they were given
KINK_WIDTH = 0.01

_RELUS = {F.relu, torch.relu, Tensor.relu}


class _Switch(torch.autograd.Function):
    """gradient * (z > 0), with the bell as its derivative in z."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(gradient, z)
        ctx.width = width
        return gradient * (z > 0)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient, z = ctx.saved_tensors
        h = ctx.width * z.square().mean().sqrt().clamp(min=torch.finfo(z.dtype).tiny)
        bell = torch.exp(-0.5 * (z / h) ** 2) / (h * sqrt(2 * pi))
        return above * (z > 0), above * gradient * bell, None


class _Relu(torch.autograd.Function):
    """relu(z)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.width = width
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        switched: Tensor = _Switch.apply(gradient, z, ctx.width)  # type: ignore[no-untyped-call]
        return switched, None


class SmoothKinks(TorchFunctionMode):
    """While it is on, ReLUs have the bell for a second derivative; width 0 leaves them alone."""

    def __init__(self, width: float):
        super().__init__()
        self._width = width

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Takes the place of a ReLU; everything else is as ever."""
        if self._width > 0 and func in _RELUS:
            z = args[0] if args else (kwargs or {})["input"]
            return _Relu.apply(z, self._width)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
