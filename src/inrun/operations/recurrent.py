"""Recurrent networks as one operation: the fallback handles them, but for packed sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inrun.operations._registry import skipping


@skipping("lstm", "gru", "rnn_tanh", "rnn_relu", signature="input second")
def packed(arguments: Mapping[str, Any]) -> str | None:
    """With packed sequences the second argument is the batch sizes, not the state."""
    second = arguments.get("second")
    if isinstance(second, Tensor) and second.ndim == 1 and not second.is_floating_point():
        return (
            "packed sequences lie in the order of their lengths, so that their rows cannot be "
            "given back to samples; pass the padded batch and mask the loss instead"
        )
    return None
