"""Numbers that an optimizer keeps on a device, known here without asking for them every time.

`fused` and `capturable` optimizers count their steps there, one counter a parameter, and a learning
rate may be a tensor. Whoever reads such a number waits for all that the device has been given to
do. So they are fetched together, once; from then on a counter is known to be one higher after each
step, as long as the tensor's version says that it was written to once. Where it says anything else
all are fetched again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Numbers = Mapping[Tensor, float]
"""What each of the tensors holds."""

_COUNTER, _OF_GROUP, _OF_STATE = "step", ("lr",), ("step", "eta")  # what rules read as numbers


class _Known(NamedTuple):
    version: int
    number: float

    def of(self, t: Tensor, written: int = 0) -> bool:
        """Whether a tensor was written to so often since."""
        return not t.is_inference() and t._version == self.version + written


class DeviceNumbers:
    """Those of one optimizer, whose `step` counts each parameter that has a gradient once."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._known: dict[Tensor, _Known] = {}

    def now(self) -> Numbers:
        """What they are; waits for the devices only where that is not known."""
        held = list(_held(self._optimizer))
        if not all(t in self._known and self._known[t].of(t) for t in held):
            versions = {t: -1 if t.is_inference() else t._version for t in held}
            self._known = {t: _Known(versions[t], n) for t, n in _fetched(held).items()}
        return {t: known.number for t, known in self._known.items()}

    def stepped(self) -> None:
        """The optimizer has taken a step."""
        for p in self._stepping() if self._known else ():
            counter = self._optimizer.state.get(p, {}).get(_COUNTER)
            if isinstance(counter, Tensor) and counter in self._known:
                known = self._known.pop(counter)
                if known.of(counter, written=1):
                    self._known[counter] = _Known(known.version + 1, known.number + 1)

    def _stepping(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from (p for p in group["params"] if p.grad is not None)


def _fetched(held: Iterable[Tensor]) -> Numbers:
    """One wait a device and precision."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for t in held:
        alike[t.device, t.dtype].append(t)
    found: dict[Tensor, float] = {}
    for tensors in alike.values():
        numbers = torch.stack([t.detach().reshape(()) for t in tensors]).tolist()
        found |= zip(tensors, numbers, strict=True)
    return found


def told(values: Mapping[str, Any], numbers: Numbers | None) -> Mapping[str, Any]:
    """A group or a state with numbers in place of the tensors that hold them."""
    if not numbers:
        return values
    return {
        name: numbers.get(value, value) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _held(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (group[name] for name in _OF_GROUP if _elsewhere(group.get(name)))
        for p in (p for p in group["params"] if _on_device(p)):
            state = optimizer.state.get(p, {})
            yield from (state[name] for name in _OF_STATE if _elsewhere(state.get(name)))


def _elsewhere(value: Any) -> bool:
    """Whether it is one number that has to be waited for."""
    return type(value) is Tensor and value.numel() == 1 and _on_device(value)


def _on_device(t: Tensor) -> bool:
    return t.device.type != "cpu"
