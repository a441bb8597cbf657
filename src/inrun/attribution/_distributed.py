"""Which processes train together, found out from the model, and what they cannot do yet."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from inrun.capture import Alone, Processes, Several
from inrun.errors import NotSupportedError


def unwrapped_model(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module inside DistributedDataParallel and its process group; None where it is not.

    Validation passes must run on the inner module: the wrapper's forward prepares a reduction.

    Raises:
        NotSupportedError: sharded parameters, or several devices in one process.
    """
    kind = type(model).__name__
    if kind == "FullyShardedDataParallel" or any(
        type(p).__name__ == "DTensor" for p in model.parameters()
    ):
        raise NotSupportedError(
            "The model's parameters are sharded (FSDP, tensor parallelism), and their shares are "
            "not computed yet. Use DistributedDataParallel with as few trained parameters as fit, "
            "for instance with LoRA."
        )
    if isinstance(model, nn.DataParallel):
        raise NotSupportedError(
            "DataParallel runs copies of the model in threads, where operations cannot be seen. "
            "Use DistributedDataParallel, one process a device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.module, model.process_group
    return model, None


def processes_of(group: Any, asked: Any, capture: str) -> Processes:
    """The processes that share the gradient.

    Args:
        group: of the model's wrapper, None where it has none.
        asked: 'auto' for the wrapper's group, or the default group where one is running; None for
            this process alone; or a group.
        capture: 'hold' or 'stream'.

    Raises:
        NotSupportedError: `stream` with several processes.
    """
    if asked is None:
        return Alone()
    if asked != "auto":
        group = asked
    elif not (dist.is_available() and dist.is_initialized()):
        return Alone()
    found = Several(group)
    if found.size == 1:
        return Alone()
    if capture == "stream":
        raise NotSupportedError(
            "capture='stream' forms directions inside the backward pass, where the gradient of "
            "several processes is not reduced yet. Use capture='hold'."
        )
    return found
