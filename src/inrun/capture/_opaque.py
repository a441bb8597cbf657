"""Calls that hide what they do: custom autograd functions and `torch.vmap`.

`torch.autograd.Function.apply` is no operation that a function mode sees, and inside `torch.vmap`
tensors have no batch axis. Within a block both are handed to the mode as one operation each, whose
owners an exchange tells and whose shares the fallback computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Intercept = Callable[[Callable[..., Any], str, tuple[Any, ...], dict[str, Any]], Any]
"""(function, name, args, kwargs) -> what the function returns."""


@contextmanager
def opaque_calls(intercept: Intercept) -> Iterator[None]:
    """Hands custom functions and vmaps to `intercept` while the block runs."""
    function = torch.autograd.Function
    apply = function.__dict__.get("apply")
    original: Any = function.apply.__func__  # type: ignore[attr-defined]

    def watched(cls: type, *args: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original(cls, *args, **kwargs)

        if cls.__module__ == "torch.utils.checkpoint":  # its layers are seen when they run
            return call(*args, **kwargs)
        return intercept(call, f"{cls.__name__}.apply", args, kwargs)

    function.apply = classmethod(watched)  # type: ignore[assignment,method-assign]
    try:
        with _vmaps(intercept):
            yield
    finally:
        if apply is None:
            del function.apply
        else:
            function.apply = apply  # type: ignore[method-assign]


@contextmanager
def _vmaps(intercept: Intercept) -> Iterator[None]:
    """`torch.vmap` calls this function of a private module; without it, vmaps are told as gaps."""
    module = getattr(torch._functorch, "apis", None)
    original = getattr(module, "vmap_impl", None)
    if module is None or original is None:
        yield
        return

    own = 5  # func, in_dims, out_dims, randomness, chunk_size

    def watched(*given: Any, **kwargs: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return original(*given[:own], *args, **kwargs)

        return intercept(call, "vmap", given[own:], kwargs)

    module.vmap_impl = watched
    try:
        yield
    finally:
        module.vmap_impl = original
