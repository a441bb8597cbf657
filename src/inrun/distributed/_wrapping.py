"""Which processes train together, found out from the model, and what they cannot do yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from inrun.distributed._processes import Processes, Several
from inrun.distributed._shards import is_sharded, reducing, require_readable
from inrun.errors import MisuseError, NotSupportedError

IN_AN_ENGINE = (
    "DeepSpeed reduces gradients, clips them and steps inside its own engine, on flat partitions "
    "of its own, where they cannot be read. Use FSDP2, which divides the same memory: fully_shard, "
    "or in accelerate's configuration fsdp_version: 2. Or DistributedDataParallel."
)


class Wrapping(NamedTuple):
    """What wraps a model for several processes.

    `group`: the processes, None where the wrapper names none. `reducing`: whether a backward pass
    averages gradients. `joined`: whether `Join` is at work.
    """

    group: Any = None
    reducing: Callable[[], bool] | None = None
    joined: Callable[[], bool] | None = None


def unwrapped_model(model: nn.Module) -> tuple[nn.Module, Wrapping]:
    """The module inside DistributedDataParallel, and what is known of the wrapper.

    Validation passes must run on the inner module: the wrapper's forward prepares a reduction.

    Raises:
        NotSupportedError: FSDP's first version, DeepSpeed, or several devices in one process.
    """
    if any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__):
        raise NotSupportedError(IN_AN_ENGINE)
    if type(model).__name__ == "FullyShardedDataParallel":
        raise NotSupportedError(
            "FullyShardedDataParallel flattens parameters into one, in which layers cannot be told "
            "apart. Use its successor, torch.distributed.fsdp.fully_shard."
        )
    if isinstance(model, nn.DataParallel):
        raise NotSupportedError(
            "DataParallel runs copies of the model in threads, where operations cannot be seen. "
            "Use DistributedDataParallel, one process a device."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        wrapper = model

        def joined() -> bool:
            return bool(getattr(wrapper._join_config, "enable", False))

        def reduces() -> bool:
            return bool(wrapper.require_backward_grad_sync)

        return model.module, Wrapping(model.process_group, reduces, joined)
    if any(map(is_sharded, model.parameters())):
        return model, Wrapping(reducing=lambda: reducing(model))
    return model, Wrapping()


def processes_of(wrapping: Wrapping, asked: Any) -> Processes:
    """The processes that share the gradient.

    `asked` is 'auto' for the wrapper's group, or the default group where one is running; None for
    this process alone; or a group.
    """
    if asked is None:
        return Processes()
    group = wrapping.group
    if asked != "auto":
        group = asked
    elif not (dist.is_available() and dist.is_initialized()):
        return Processes()
    found = Several(group, wrapping.reducing, wrapping.joined)
    return Processes() if found.size == 1 else found


def require_sharded(
    model: nn.Module,
    processes: int,
    trained: Sequence[Tensor],
    *,
    mixing: str | None,
    differentiating: str | None,
    streaming: bool,
) -> None:
    """Raises where a model with sharded parameters is asked for what only whole ones can do.

    `mixing` is an optimizer that mixes a parameter's elements, `differentiating` an estimator that
    needs a second derivative, if there are any; `streaming` forms directions inside the backward
    pass.

    Raises:
        NotSupportedError: one of these, parameters that are left out, or other shards than those of
            `fully_shard`.
        MisuseError: the model is spread over other processes than these.
    """
    if not any(map(is_sharded, model.parameters())):
        return
    require_readable(model, processes)
    if mixing is not None:
        raise NotSupportedError(
            f"{mixing} steps by whole matrices, and fully_shard leaves each process a part of "
            "them: a part's displacement cannot be told from the part's gradient. Use an optimizer "
            "that is elementwise (AdamW, SGD, Lion, ...), or DistributedDataParallel."
        )
    if differentiating is not None:
        raise NotSupportedError(
            f"estimator {differentiating!r} needs a second derivative, and FSDP's backward pass "
            "has none. Use estimator='path'."
        )
    if streaming:
        raise NotSupportedError(
            "capture='stream' forms directions inside the backward pass, where FSDP has not put "
            "the gradient of a layer in parts yet. Use capture='hold'."
        )
    names = {id(p): name for name, p in model.named_parameters()}
    known = {names[id(p)]: p for p in trained if id(p) in names}
    plain = [name for name, p in known.items() if p.requires_grad and not is_sharded(p)]
    if plain and known.keys() - set(plain) and processes > 1:
        raise NotSupportedError(
            f"{plain[0]} is trained and not under fully_shard, so that nobody averages its "
            "gradient over the processes. Call fully_shard on the whole model too, after its parts."
        )
    if not known.keys() - set(plain):
        raise MisuseError(
            "The optimizer holds none of the sharded parameters. Build it after fully_shard, which "
            "replaces them."
        )
