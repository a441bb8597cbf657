"""Random state, so that an operation that is run again draws what it drew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


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
