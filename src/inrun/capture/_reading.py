"""Numbers on their way from an accelerator to the host.

Who asks a device for a number at once waits until it has done all the work that was queued before,
and then the device waits until the host has queued more. So numbers are asked for when they are
launched and read when they are needed, with other work in between.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def reads_late(tensors: Iterable[Tensor]) -> bool:
    """Whether there is anything to be gained: all of them are on CUDA devices."""
    return all(t.device.type == "cuda" for t in tensors)


class Reading:
    """Tensors as they are now, for the host to read.

    Args:
        tensors: small ones; copies of those on a CUDA device begin at once.
    """

    def __init__(self, *tensors: Tensor):
        self._found = [_sent(t.detach()) for t in tensors]
        self._events: list[torch.cuda.Event] = []
        for device in {t.device for t in tensors if t.device.type == "cuda"}:
            with torch.cuda.device(device):
                event = torch.cuda.Event()
                event.record()
            self._events.append(event)

    def wait(self) -> list[Tensor]:
        """The tensors on the CPU."""
        for event in self._events:
            event.synchronize()
        self._events = []
        self._found = [t.cpu() for t in self._found]
        return self._found


def _sent(t: Tensor) -> Tensor:
    """A copy in pinned memory, where the device writes it while the host goes on."""
    if t.device.type != "cuda":
        return t
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
