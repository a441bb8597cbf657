"""Compiled models run uncompiled while they are watched: fused operations cannot be seen.

`torch.compiler.set_stance` says so to torch itself, for whole models, parts of them and functions,
and compiled code is back on leaving; nothing is compiled again.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

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
