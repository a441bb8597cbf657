"""Numbers that the host reads from a device: all that wait come with the first that is asked for.

Who asks a device for a number waits until it has done all the work that was queued before. So what
a step must know is gathered and fetched twice: when the optimizer is about to step (what the
invariant compares, what became of the gradients, whether weights moved since the last pass), and
when the step is scored (losses, values, what a low rank missed).
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


class Reading:
    """Small tensors, to which nobody writes any more, for the host to read."""

    def __init__(self, *tensors: Tensor):
        self._found = [t.detach() for t in tensors]
        self._waits = not are_here(tensors)
        if self._waits:
            _waiting.readings.add(self)

    def wait(self) -> list[Tensor]:
        """The tensors on the CPU, and with them all that wait."""
        if self._waits:
            _fetch(list(_waiting.readings))
            _waiting.readings.clear()
        return self._found


class _Waiting(threading.local):
    """Readings of this thread that nobody has asked for yet, as long as somebody may."""

    def __init__(self) -> None:
        self.readings: weakref.WeakSet[Reading] = weakref.WeakSet()


_waiting = _Waiting()


def are_here(tensors: Iterable[Tensor]) -> bool:
    """Whether the host can read them without waiting for a device."""
    return not any(is_elsewhere(t.device) for t in tensors)


def is_elsewhere(device: torch.device) -> bool:
    """Whether a device's memory is not the host's."""
    return device.type != "cpu"


def _fetch(readings: list[Reading]) -> None:
    tensors = {id(t): t for reading in readings for t in reading._found}
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for t in tensors.values():
        by_device[t.device].append(t)
    here: dict[int, Tensor] = {}
    for device, found in by_device.items():
        copies = transferred(found) if is_elsewhere(device) else found
        here |= {id(t): copy for t, copy in zip(found, copies, strict=True)}
    for reading in readings:
        reading._found = [here[id(t)] for t in reading._found]
        reading._waits = False


def transferred(tensors: list[Tensor]) -> list[Tensor]:
    """One device's tensors on the CPU, by one copy of all their bytes.

    Each begins at a multiple of 8 bytes, as numbers of any precision may.
    """
    sizes = [t.numel() * t.element_size() for t in tensors]
    rows = []
    for t, size in zip(tensors, sizes, strict=True):
        row = t.contiguous().reshape(-1).view(torch.uint8)
        rows.append(torch.nn.functional.pad(row, (0, -size % 8)))
    joined = torch.cat(rows).cpu()
    parts = joined.split([len(row) for row in rows])
    return [
        part[:size].view(t.dtype).reshape(t.shape)
        for t, part, size in zip(tensors, parts, sizes, strict=True)
    ]
