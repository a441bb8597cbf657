"""Any other operation: its own backward pass, once per sample, with the other samples masked.

share_b = (d output / d parameter)^T (output gradient, zero outside sample b). Right for every
differentiable operation that treats samples apart, as slow as B backward passes of it. The
operation is run again, from the random state that it had, so that it draws what it drew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.factors import Dense
from inrun.operations._call import Layout, Slots


def replace(value: Any, swap: Callable[[Tensor], Any]) -> Any:
    """The same arguments with every tensor exchanged, through lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return swap(value)
    if isinstance(value, (list, tuple)):
        items = [replace(item, swap) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: replace(item, swap) for key, item in value.items()}
    return value


def outputs_of(value: Any) -> list[Tensor]:
    """The tensors that an operation returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in outputs_of(item)]
    return []


def fallback(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parameter: Tensor,
    gradients: Sequence[tuple[Tensor | None, Layout | Slots | None]],
    samples: int,
) -> Dense:
    """Shares of `parameter`, one of the tensors among the operation's arguments.

    `gradients`: for each output its gradient (None: the loss does not use it) and layout.
    """
    leaf = parameter.detach().clone().requires_grad_()

    def swap(t: Tensor) -> Tensor:
        # cloned, since an operation that works in place may overwrite neither leaf nor argument
        return leaf.clone() if t is parameter else t.detach().clone()

    with torch.enable_grad():
        outputs = outputs_of(function(*replace(list(args), swap), **replace(dict(kwargs), swap)))
    used = [
        (out, gradient, layout)
        for out, (gradient, layout) in zip(outputs, gradients, strict=True)
        if gradient is not None and layout is not None and out.requires_grad
    ]
    shares = torch.zeros(samples, *parameter.shape, dtype=leaf.dtype, device=leaf.device)
    for b in range(samples):
        masked = [layout.only(gradient.to(out.dtype), b, samples) for out, gradient, layout in used]
        (share,) = torch.autograd.grad(
            [out for out, _, _ in used], leaf, masked, retain_graph=True, allow_unused=True
        )
        if share is not None:
            shares[b] = share
    return Dense(shares)


class RandomState(NamedTuple):
    """The generators' states before an operation: the CPU's, and those of the GPUs it ran on."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @staticmethod
    def now(near: Iterable[Tensor]) -> RandomState:
        """As it is, for the devices of these tensors."""
        devices = {t.device.index for t in near if t.device.type == "cuda"}
        return RandomState(
            torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}
        )


@contextmanager
def repeated(state: RandomState | None) -> Iterator[None]:
    """Draws inside as from that state; the present state is back on leaving."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=list(state.cuda)):
        torch.set_rng_state(state.cpu)
        for device, there in state.cuda.items():
            torch.cuda.set_rng_state(there, device)
        yield
