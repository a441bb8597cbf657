"""Inputs of uses inside a checkpoint without re-entry: let go of until it recomputes them.

Such a checkpoint keeps none of its layers' activations and runs them again in the backward pass. A
use that held its input from the forward pass on would keep them all the same. Operations of a
checkpointed region come in the same order again, so that the k-th of the recomputation brings the
inputs of the k-th of the forward pass. Where it does not, the use stays without, which whoever
collects shares tells as a gap.

Only uses whose operation itself saves its input wait: a recomputation goes as far as the last
tensor that was saved, and no further. Regions within regions hold their inputs as ever.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.capture._uses import Use

_OF_MATRICES = frozenset(
    (
        "linear", "addmm", "mm", "matmul", "__matmul__", "bmm", "baddbmm", "conv1d", "conv2d",
        "conv3d",
    )
)  # fmt: skip
_HOOKS_OWN = "detach"  # what the hooks call on their way
_OF_GAINS = frozenset(("mul", "__mul__", "__rmul__", "layer_norm", "rms_norm", "group_norm"))


def saves_input(name: str, consumed: Mapping[int, Any], tensors: list[Tensor]) -> bool:
    """Whether autograd saves the input of an operation for the gradient of what it consumed."""
    if name in _OF_GAINS:
        return True
    sizes = [t.ndim for t in tensors if id(t) in consumed]
    return name in _OF_MATRICES and max(sizes, default=0) > 1


@dataclass
class _Region:
    frame: weakref.ref[Any]
    within: bool  # another region, or other hooks
    names: list[str] = field(default_factory=list)
    uses: dict[int, Use] = field(default_factory=dict)
    again: dict[Any, int] = field(default_factory=dict)  # operations by recomputation


class Place(NamedTuple):
    region: _Region
    number: int

    def wait(self, use: Use) -> None:
        """The use gets its inputs when the operation comes again."""
        if not self.region.within:
            use.wait()
            self.region.uses[self.number] = use


class Recomputed:
    """The checkpointed regions of a block."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}
        self._last: tuple[Any, Any, Any] = None, None, None

    def place(self, name: str) -> Place | None:
        """Takes note of an operation of the forward pass; where it is in a region, if in one."""
        frame, _ = self._frame()
        if frame is None or name == _HOOKS_OWN:
            return None
        region = self._regions.get(id(frame))
        if region is None or region.frame() is not frame:
            region = self._regions[id(frame)] = _Region(weakref.ref(frame), _is_within())
        region.names.append(name)
        return Place(region, len(region.names) - 1)

    def again(self, name: str) -> Use | None:
        """Takes note of an operation of a recomputation; the use that waits for it."""
        frame, run = self._frame()
        region = self._regions.get(id(frame)) if frame is not None else None
        if region is None or region.frame() is not frame or run is None or name == _HOOKS_OWN:
            return None
        number = region.again.get(run, 0)
        region.again[run] = number + 1
        if number >= len(region.names) or region.names[number] != name:
            region.uses.clear()  # another sequence: what still waits stays without
            return None
        return region.uses.pop(number, None)

    def _frame(self) -> tuple[Any, Any]:
        """The region that operations are in, and which recomputation of it, if it is one."""
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None:
            return None, None
        if self._last[0] is not hooks[0]:
            pack = inspect.unwrap(hooks[0])
            names, cells = pack.__code__.co_freevars, pack.__closure__ or ()
            held = {n: c.cell_contents for n, c in zip(names, cells, strict=True)}
            frame = held.get("frame")
            if frame is None and "target_frame_ref" in held:
                frame = held["target_frame_ref"]()
            self._last = hooks[0], frame, held.get("gid")
        return self._last[1], self._last[2]


def _is_within() -> bool:
    """Whether the hooks that are on top lie within others."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    finally:
        torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
