"""Whether an optimizer's memory of gradients is the one that the last scored step left.

An emptied state, another state that was loaded and an edit in place are seen: the tensor is another
one with other numbers, its version counter went on, or its bits add up to something else.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from inrun.attribution._weights import checksum
from inrun.capture import Reading


class MemoryMark(NamedTuple):
    """Of one parameter's memory; `bits` is still on its device."""

    tensor: weakref.ref[Tensor]
    version: int
    bits: Tensor


def mark_of(memory: Tensor | None) -> MemoryMark | None:
    """As it is now; None where there is none."""
    if memory is None:
        return None
    return MemoryMark(weakref.ref(memory), memory._version, checksum(memory))


class Edited:
    """Whose memory is another than the one that was left there.

    Args:
        left: by name, after the last scored step that moved the parameter.
        found: by name, before this one.
    """

    def __init__(
        self, left: Mapping[str, MemoryMark | None], found: Mapping[str, MemoryMark | None]
    ):
        self._gone: list[str] = []
        compared: dict[str, Tensor] = {}
        for name, now in found.items():
            before = left.get(name)
            if before is None:
                continue
            if now is None or (before.tensor() is now.tensor() and before.version != now.version):
                self._gone.append(name)
            else:
                compared[name] = before.bits != now.bits.to(before.bits.device)
        self._compared, self._differ = list(compared), Reading(*compared.values())

    def names(self) -> list[str]:
        """Of them."""
        differ = zip(self._compared, self._differ.wait(), strict=True)
        return self._gone + [name for name, is_other in differ if is_other]
