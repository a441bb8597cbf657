"""Parameters of which every process holds a part, by `DTensor` placements and `fully_shard`.

Parts are cut as `torch.chunk` cuts them, so that the last ones may be smaller or empty. A sharded
parameter is in no autograd graph. For a forward and a backward pass FSDP puts a gathered copy in
its place, and what reaches the parameter is the reduced gradient, in `.grad`. So a gradient on the
side is a real backward pass with `.grad` put aside, and put back. Letters: K leading rows, such as
targets.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from inrun.distributed._processes import Processes
from inrun.errors import MisuseError, NotSupportedError


def is_sharded(t: Any) -> bool:
    kind: Any = type(t)
    return _of_shards(kind)


@cache
def _of_shards(kind: Any) -> bool:
    """Whether a class is `DTensor` or one of it, told by name: the class is slow to import."""
    return any(base.__name__ == "DTensor" for base in kind.__mro__)


def own_part(t: Tensor) -> Tensor:
    """What this process holds of a tensor, the live storage itself; a plain tensor is all of it."""
    if not is_sharded(t):
        return t
    with torch.no_grad():
        part: Tensor = t.detach().to_local()  # type: ignore[attr-defined]
    return part


def own_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state of one parameter, by this process's parts."""
    return {
        name: own_part(value) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def parts(p: Tensor) -> int:
    """In how many different parts a parameter is held; 1 for a plain one."""
    return math.prod(size for size, _, dim in _axes(p) if dim is not None)


def part_of(whole_K: Tensor, p: Tensor, leading: int = 0) -> Tensor:
    """This process's part of a tensor that has the parameter's axes after `leading` others."""
    for size, rank, dim in _axes(p):
        if dim is not None:
            cut = whole_K.chunk(size, dim + leading)
            nothing = whole_K.narrow(dim + leading, 0, 0)
            whole_K = cut[rank] if rank < len(cut) else nothing
    return whole_K


def whole(own_K: Tensor, p: Tensor) -> Tensor:
    """Every process's part (K, *part) as (K, *shape); all processes of the parameter call it."""
    if not is_sharded(p):
        return own_K
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((len(own_K), *p.shape))
    placements = [
        Shard(placement.dim + 1) if placement.is_shard() else placement
        for placement in p.placements  # type: ignore[attr-defined]
    ]
    gathered: Tensor = DTensor.from_local(
        own_K.contiguous(), p.device_mesh, placements, run_check=False,  # type: ignore[attr-defined]
        shape=shape, stride=torch.empty(shape, device="meta").stride(),
    ).full_tensor()  # fmt: skip
    return gathered


def _axes(p: Tensor) -> list[tuple[int, int, int | None]]:
    """(processes, this one's place, axis that is cut or None) for each axis of the mesh."""
    if not is_sharded(p):
        return []
    mesh: Any = p.device_mesh  # type: ignore[attr-defined]
    return [
        (mesh.size(i), mesh.get_local_rank(i), placement.dim if placement.is_shard() else None)
        for i, placement in enumerate(p.placements)  # type: ignore[attr-defined]
    ]


def fully_sharded(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was called on; none for any other model."""
    if "torch.distributed.fsdp" not in sys.modules:  # slow to import, and then there are none
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def meeting(model: nn.Module, processes: Processes) -> Iterator[None]:
    """All processes meet before each call of a sharded module, which is a call to the others.

    One that fails, at whatever place of a forward pass, is then not waited for within FSDP.
    """

    def meet(*_: Any) -> None:
        with torch._C.DisableTorchFunction():  # no mode that looks on sees it
            processes.meet()

    with ExitStack() as stack:
        for module in fully_sharded(model):
            stack.callback(module.register_forward_pre_hook(meet, prepend=True).remove)
        yield


def _groups(model: nn.Module) -> list[Any]:
    """FSDP's groups of parameters that are gathered together; private, and renamed once."""
    found: list[Any] = []
    for module in fully_sharded(model):
        state = module._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        found += [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def reducing(model: nn.Module) -> bool:
    """Whether a backward pass reduces gradients (`set_requires_gradient_sync`)."""
    return all(group.reduce_grads for group in _groups(model))


def _waits(managed: Any) -> bool:
    """Whether a parameter has a gradient that no backward pass has reduced yet."""
    gathered = getattr(managed, "_unsharded_param", None)
    return managed.unsharded_accumulated_grad is not None or (
        gathered is not None and gathered.grad is not None
    )


def require_readable(model: nn.Module, processes: int) -> None:
    """Raises where shards are not those of data parallelism alone, over so many processes.

    Raises:
        NotSupportedError: tensor parallelism, parts on the CPU, a divisor of the user's own.
        MisuseError: the model is spread over another number of processes.
    """
    groups = _groups(model)
    sharded = [(name, p) for name, p in model.named_parameters() if is_sharded(p)]
    if not groups:
        raise NotSupportedError(
            f"{sharded[0][0]} is a DTensor that fully_shard did not make (tensor parallelism): "
            "activations are spread over processes too, and a sample's share lies in none of "
            "them. Shard by data alone, with torch.distributed.fsdp.fully_shard."
        )
    for name, p in sharded:
        kinds = [type(placement).__name__ for placement in p.placements]  # type: ignore[attr-defined]
        if set(kinds) - {"Shard", "Replicate"} or kinds.count("Shard") > 1:
            raise NotSupportedError(
                f"{name} is laid out as {', '.join(kinds)}: FSDP together with tensor parallelism "
                "is not supported yet. Shard by data alone."
            )
        over = p.device_mesh.size()  # type: ignore[attr-defined]
        if over != processes:
            raise MisuseError(
                f"{name} is spread over {over} processes, and {processes} are attached together. "
                "Pass process_group=, the group of the mesh that fully_shard was given."
            )
    for group in groups:
        if any(getattr(one, "offload_to_cpu", False) for one in group.fsdp_params):
            raise NotSupportedError(
                "fully_shard(offload_policy=CPUOffloadPolicy()) keeps parts on another device than "
                "the activations, which is not read yet. Leave the parts on their device."
            )
        divisor = getattr(group, "gradient_divide_factor", None)
        if divisor not in (None, processes):
            raise NotSupportedError(
                f"set_gradient_divide_factor({divisor}) makes the gradient "
                f"something else than the mean over {processes} processes, and validation "
                "gradients with it. Scale the loss instead."
            )


def reduced_gradients(
    loss: Tensor, model: nn.Module, parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """This process's parts of the loss's gradients, the mean over processes.

    Raises:
        MisuseError: gradients of a training pass still wait to be reduced.
    """
    groups = _groups(model)
    managed = [one for group in groups for one in group.fsdp_params]
    if any(_waits(one) for one in managed):
        raise MisuseError(
            "Gradients still wait to be reduced (set_requires_gradient_sync(False)) where a "
            "validation pass must be made. Let the last backward pass before optimizer.step() "
            "reduce."
        )
    everyone = [*(one.sharded_param for one in managed), *model.parameters(), *parameters]
    touched = list({id(p): p for p in everyone}.values())
    before = [p.grad for p in touched]
    flags = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
    try:
        for p in touched:
            p.grad = None
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = True
        loss.backward()
        return [None if p.grad is None else own_part(p.grad) for p in parameters]
    finally:
        for p, gradient in zip(touched, before, strict=True):
            p.grad = gradient
        for group, reduces, reduces_all in flags:
            group.reduce_grads, group.all_reduce_grads = reduces, reduces_all


@contextmanager
def sharded_afterwards(model: nn.Module) -> Iterator[None]:
    """Leaves parameters in parts if they were so: a pass without a backward one gathers them."""
    groups = [group for group in _groups(model) if not group.is_unsharded]
    try:
        yield
    finally:
        with torch.no_grad():
            for group in groups:
                group.reshard()
