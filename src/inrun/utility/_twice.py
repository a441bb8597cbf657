"""Graphs that are differentiated twice, where torch's second derivative is missing or wrong.

- Fused attention has no second derivative: its plain kernel runs instead.
- `torch._weight_norm` has one that is wrong where it is taken along one axis (`gradgradcheck` fails
  in torch 2.13): its formula v * g / |v| runs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Call = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


class EachCall(TorchFunctionMode):
    """While it is on, `call(function, args, kwargs)` is made in place of every torch function."""

    def __init__(self, call: Call):
        super().__init__()
        self._call = call

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What `call` returns."""
        return self._call(func, args, kwargs or {})


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Every operation with a right second derivative; values and first derivatives as ever."""
    with sdpa_kernel(SDPBackend.MATH), EachCall(_with_formulas):
        yield


def _with_formulas(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return (_weight_norm if func is torch._weight_norm else func)(*args, **kwargs)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
