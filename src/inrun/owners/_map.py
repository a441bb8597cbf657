"""Owner maps: which sample every slot of a tensor belongs to, as a small integer tensor.

A map has as many axes as its tensor; each axis is as long as the tensor's, or 1 where all entries
along it have one owner. Its numbers are samples, 0 to B-1, or one of four codes:

    NONE      the same for all samples: a constant, or made of parameters alone
    MIXED     depends on several samples
    SUM       a sum of terms that depend on one sample each
    UNKNOWN   an operation came by whose owners could not be told

Maps lie on the CPU whatever the device of their tensors, so that reading one never waits for a
device. They are shared between tensors, never written to, and remember what became of them under
an operation (`memo`): in the next layer and in the next step that costs a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

NONE, MIXED, SUM, UNKNOWN = -1, -2, -3, -4
_LARGE = 2**30

T = TypeVar("T")


class Map:
    """Owners of a tensor's slots.

    Args:
        codes: int32 on the CPU; see above.
        why: the operation that made slots MIXED, SUM or UNKNOWN.
        how: 'followed', 'exchanged' or 'given': how the owners came to be known.
    """

    __slots__ = ("_bounds", "codes", "how", "kept", "memo", "why")

    def __init__(self, codes: Tensor, why: str = "", how: str = "followed"):
        self.codes, self.why, self.how = codes, why, how
        self.memo: dict[Hashable, Any] = {}
        self.kept: list[Any] = []  # objects whose id is in a key of the memo
        self._bounds: tuple[int, int] | None = None

    def _read(self) -> tuple[int, int]:
        if self._bounds is None:
            if self.codes.numel():
                low, high = torch.aminmax(self.codes)
                self._bounds = int(low), int(high)
            else:
                self._bounds = 0, NONE  # no slot has a bad owner, and none has one at all
        return self._bounds

    @property
    def low(self) -> int:
        """The smallest number: below NONE there are slots without one owner."""
        return self._read()[0]

    @property
    def high(self) -> int:
        """The largest number."""
        return self._read()[1]

    @property
    def owned(self) -> bool:
        """Whether every slot has one owner."""
        return self.low >= 0

    @property
    def nobodys(self) -> bool:
        """Whether no slot has an owner, and all are the same for all samples."""
        return self.low == NONE == self.high

    def has(self, code: int) -> bool:
        """Whether a code, or a sample, is among its numbers."""
        return self.low <= code <= self.high and bool((self.codes == code).any())

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def shape(self) -> torch.Size:
        """Of the map, not of its tensor."""
        return self.codes.shape

    @property
    def varying(self) -> tuple[int, ...]:
        """Axes along which owners may differ."""
        return tuple(i for i, size in enumerate(self.codes.shape) if size != 1)

    def remembered(self, key: Hashable, make: Callable[[], T], *keep: Any) -> T:
        """What an operation made of this map, made only once; ids in the key are of `keep`."""
        try:
            found: T | None = self.memo.get(key)
        except TypeError:  # an argument that cannot be hashed
            return make()
        if found is None:
            found = self.memo[key] = make()
            self.kept += keep
        return found

    def in_front(self, ndim: int) -> Map:
        """The same map with axes of length 1 in front, so that it has as many as that."""
        if self.ndim >= ndim:
            return self
        shape = (1,) * (ndim - self.ndim) + tuple(self.shape)
        return self.remembered(("axes", ndim), lambda: self.derived(self.codes.reshape(shape)))

    def without(self, axes: Sequence[int]) -> Map:
        """The same map without axes, along which it has length 1."""
        gone = frozenset(axis % self.ndim for axis in axes) if self.ndim else frozenset()

        def make() -> Map:
            kept = [n for i, n in enumerate(self.shape) if i not in gone]
            return self.derived(self.codes.reshape(kept))

        return self.remembered(("without", gone), make)

    def derived(self, codes: Tensor) -> Map:
        """A map of something made of this one's tensor."""
        return Map(codes, self.why, self.how)


def uniform(code: int, ndim: int, why: str = "") -> Map:
    return Map(torch.full((1,) * ndim, code, dtype=torch.int32), why)


def compressed(codes: Tensor) -> Tensor:
    """Axes that were spread over one number, cut back to 1."""
    for axis, (size, stride) in enumerate(zip(codes.shape, codes.stride(), strict=True)):
        if size > 1 and stride == 0:
            codes = codes.narrow(axis, 0, 1)
    return codes


def squeezed(codes: Tensor) -> Tensor:
    """Axes along which all entries are alike, cut back to 1."""
    for axis, size in enumerate(codes.shape):
        if size > 1:
            first = codes.narrow(axis, 0, 1)
            if bool((codes == first).all()):
                codes = first
    return codes


def adopted(codes: Tensor, samples: int, *, alone: bool) -> Tensor:
    """NONE becomes the owner of its row, where along one axis all others have that one owner.

    So the class token in front of a sample's patches goes with its sample. With `alone` also a row
    by which owners do not vary at all may adopt.
    """
    none = codes == NONE
    if not bool(none.any()):
        return codes
    for axis in reversed(range(codes.ndim)):
        if codes.shape[axis] == 1:
            continue
        low = torch.where(none, _LARGE, codes).amin(axis, keepdim=True)
        high = codes.amax(axis, keepdim=True)
        if not bool(((low == high) & (high >= 0)).all()):
            continue
        if alone or samples == 1 or bool((high != high.flatten()[0]).any()):
            return torch.where(none, high, codes)
    return codes


def collapsed(m: Map, axes: Sequence[int], *, linear: bool, why: str) -> Map:
    """Owners of what combines all entries along these axes; they stay, with length 1.

    `linear`: by adding, so that terms of several samples stay a SUM. `why`: the operation's name.
    """
    axes = tuple(sorted({axis % m.ndim for axis in axes})) if m.ndim else ()
    flat = all(m.codes.shape[axis] == 1 for axis in axes)
    if flat and (linear or m.low > SUM or m.low == UNKNOWN):
        return m
    return m.remembered(("collapse", axes, linear), lambda: _collapsed(m, axes, linear, why))


def _collapsed(m: Map, axes: tuple[int, ...], linear: bool, why: str) -> Map:
    t = m.codes
    if not t.numel():
        shape = [1 if i in axes else size for i, size in enumerate(t.shape)]
        return m.derived(torch.full(shape, NONE, dtype=torch.int32))
    if not axes:
        t, axes = t.unsqueeze(0), (0,)
        return m.derived(_combined(t, axes, linear).squeeze(0))
    found = m.derived(_combined(t, axes, linear))
    if found.low < NONE <= m.low:
        found.why = why
    return found


def _combined(t: Tensor, axes: tuple[int, ...], linear: bool) -> Tensor:
    low = torch.where(t == NONE, _LARGE, t).amin(axes, keepdim=True)
    high = t.amax(axes, keepdim=True)
    lowest = t.amin(axes, keepdim=True)
    one = torch.where(low == _LARGE, NONE, torch.where(low == high, low, SUM if linear else MIXED))
    mixes = t == MIXED if linear else (t == MIXED) | (t == SUM)
    bad = torch.where(mixes, 1, 0).amax(axes, keepdim=True) > 0
    found = torch.where(lowest < NONE, SUM, one)
    found = torch.where(bad, MIXED, found)
    return torch.where(lowest == UNKNOWN, UNKNOWN, found).to(torch.int32)


def joined(a: Map, b: Map, ndim: int, *, adds: bool, why: str) -> Map:
    """Owners of what combines two broadcast tensors entry by entry, with so many axes.

    `adds`: the operation is linear in the two together (a sum, a difference).
    """
    if a is b and (adds or a.low > SUM or a.low == UNKNOWN) and a.ndim == ndim:
        return a
    key = ("join", id(b), ndim, adds)
    return a.remembered(key, lambda: _joined(a, b, ndim, adds, why), b)


def _joined(a: Map, b: Map, ndim: int, adds: bool, why: str) -> Map:
    x, y = a.in_front(ndim).codes, b.in_front(ndim).codes
    how = "exchanged" if "exchanged" in (a.how, b.how) else a.how
    same = torch.where(x == SUM, SUM if adds else MIXED, x)
    mixed = (x == MIXED) | (y == MIXED)
    clash: Tensor | int = torch.where(mixed, MIXED, SUM) if adds else MIXED
    t = torch.where(x == NONE, y, torch.where(y == NONE, x, torch.where(x == y, same, clash)))
    t = torch.where((x == UNKNOWN) | (y == UNKNOWN), UNKNOWN, t).to(torch.int32)
    found = Map(t, a.why or b.why, how)
    if found.low < NONE and min(a.low, b.low) >= NONE:
        found.why = why
    return found


def combined_at(
    places: Tensor, codes: Tensor, axis: int, size: Sequence[int], base: Tensor | None, clash: int
) -> Tensor:
    """Owners after entries were put together along an axis, each at its place.

    `places` are as `scatter_reduce` takes them, `base` the owners of what was there before, `clash`
    the code where several samples came together.
    """
    low = torch.full(tuple(size), _LARGE, dtype=torch.int32)
    high = torch.full(tuple(size), NONE, dtype=torch.int32)
    if base is not None:
        low, high = torch.where(base == NONE, low, base), torch.where(base == NONE, high, base)
    smallest = torch.where(codes == NONE, _LARGE, codes).to(torch.int32)
    low = low.scatter_reduce(axis, places, smallest, "amin")
    high = high.scatter_reduce(axis, places, codes.to(torch.int32).contiguous(), "amax")
    one = torch.where(low == high, low, torch.where(low < NONE, torch.minimum(low, high), clash))
    return torch.where(low == _LARGE, NONE, one).to(torch.int32)


def is_statistic(statistic: Map, of: Map) -> bool:
    """Whether one map is of a number of the whole batch that meets each of its samples' slots.

    Such a number (a batch mean, a norm over the batch) is the same for all of them, so each slot
    stays its sample's own, and samples interact through the number.
    """
    if not of.varying or of.low < 0 or statistic.low < SUM or statistic.high >= NONE:
        return False
    lead = of.ndim - statistic.ndim
    return all(axis < lead or statistic.shape[axis - lead] == 1 for axis in of.varying)


def reshaped(codes: Tensor, before: torch.Size, after: torch.Size) -> Tensor:
    """The map of a reshaped tensor; equal axes at the end are left out of the work."""
    same = 0
    while same < min(len(before), len(after)) and before[-1 - same] == after[-1 - same]:
        same += 1
    while same and before[: len(before) - same].numel() != after[: len(after) - same].numel():
        same -= 1
    if same and all(size == 1 for size in codes.shape[len(before) - same :]):
        cut = len(before) - same
        head = codes.reshape(codes.shape[:cut]).expand(before[:cut])
        moved = squeezed(head.reshape(after[: len(after) - same]))
        return moved.reshape(*moved.shape, *([1] * same))
    return squeezed(codes.expand(before).reshape(after))
