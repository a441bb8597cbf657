"""What is different in the process while a block is open.

Compiled models run uncompiled: fused operations cannot be seen. `torch.compiler.set_stance` says
so to torch itself, for whole models, parts of them and functions, and compiled code is back on
leaving; nothing is compiled again.

Calls that hide what they do are seen: `torch.autograd.Function.apply` is no operation that a
function mode sees, and inside `torch.vmap` tensors have no batch axis. Both are handed to the mode
as one operation each (`opaque_calls`), whose owners an exchange tells and whose shares the fallback
computes.

Python's cyclic garbage collector rests (`Resting`). A step of many small operations makes tens of
thousands of objects that live until it is over, and the collector, which is set off by how many
were made, would walk all objects of the program again and again. None of them is garbage before
the step has gone, and then reference counts free them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from inrun.utility import swapped


def uncompiled() -> AbstractContextManager[object]:
    """Runs what is inside without compiled code, whoever compiled it: a trainer wraps models too.

    Nothing is compiled where the compiler was never loaded, which takes seconds.
    """
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def compiled_parts(model: nn.Module) -> list[str]:
    """Names of the modules that are compiled, '' for the model itself."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]


class Resting:
    """The collector rests inside; where somebody has switched it off already, it stays off."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()


def unseen() -> AbstractContextManager[object]:
    """For the library's own work inside a backward pass: no mode sees it."""
    found: AbstractContextManager[object] = torch._C.DisableTorchFunction()
    return found


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

    with swapped(module, "vmap_impl", watched):
        yield
