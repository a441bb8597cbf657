"""What is different in the process while a block is open.

Compiled models run uncompiled: fused operations cannot be seen. `torch.compiler.set_stance` says
so to torch itself, for whole models, parts of them and functions, and compiled code is back on
leaving; nothing is compiled again.

Python's cyclic garbage collector rests (`Resting`). A step of many small operations makes tens of
thousands of objects that live until it is over, and the collector, which is set off by how many
were made, would walk all objects of the program again and again. None of them is garbage before
the step has gone, and then reference counts free them.
"""

from __future__ import annotations

import gc
import sys
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import nn


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._was_on:
            gc.enable()
