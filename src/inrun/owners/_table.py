"""Which map a tensor has now, also after something wrote into it through a view or its base.

The table holds its tensors weakly and is dropped with its block: nothing is left on them. Tensors
that share memory are told apart by their storage: once a part of one was overwritten by another
sample's entries, the owners of all its elements are kept, and every tensor over it reads its own.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.owners._map import NONE, UNKNOWN, Map, squeezed, uniform

_OWN = 2  # uses of a storage: the tensor's and the one that asks


class _Elements(NamedTuple):
    """Owners of all elements of a storage, which is kept so that its address stays its own."""

    codes: Tensor
    itemsize: int
    storage: Any


class Table:
    """Maps by tensor, None for what is the same for all samples."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[weakref.ref[Tensor], Any]] = {}
        self._shared: dict[int, _Elements] = {}

    def get(self, t: Tensor, missing: Any) -> Any:
        """What was put for a tensor, or else `missing`."""
        row = self._rows.get(id(t))
        if row is None or row[0]() is not t:
            return missing
        if self._shared:
            elements = self._shared.get(t.untyped_storage()._cdata)
            if elements is not None:
                return self._read(elements, t)
        return row[1]

    def put(self, t: Tensor, entry: Any) -> None:
        self._rows[id(t)] = (weakref.ref(t), entry)

    def write(self, t: Tensor, before: Map | None, after: Map | None) -> None:
        """Takes note that a tensor was written into, and is of these owners now."""
        if before is after:
            self.put(t, after)
            return
        storage = t.untyped_storage()
        key = storage._cdata
        if key not in self._shared:
            if torch._C._storage_Use_Count(key) <= _OWN:
                self.put(t, after)
                return
            self._shared[key] = self._elements(t, before, storage)
        elements = self._shared[key]
        if t.element_size() == elements.itemsize:
            codes = torch.tensor(NONE, dtype=torch.int32) if after is None else after.codes
            self._view(elements, t).copy_(codes.expand(t.shape))
        else:
            elements.codes.fill_(UNKNOWN)
        self.put(t, after)

    def _elements(self, t: Tensor, before: Map | None, storage: Any) -> _Elements:
        count = storage.nbytes() // t.element_size()
        elements = _Elements(
            torch.full((count,), NONE, dtype=torch.int32), t.element_size(), storage
        )
        for other, entry in self._over(storage._cdata):  # also `x.data`, whose base is not said
            if isinstance(entry, Map) and other.element_size() == elements.itemsize:
                self._view(elements, other).copy_(entry.codes.expand(other.shape))
        codes = torch.tensor(NONE, dtype=torch.int32) if before is None else before.codes
        self._view(elements, t).copy_(codes.expand(t.shape))
        return elements

    def _over(self, key: int) -> list[tuple[Tensor, Any]]:
        """The tensors over a storage, with what was put for them."""
        found = []
        for reference, entry in self._rows.values():
            t = reference()
            if t is None or t.layout != torch.strided or t.is_nested:
                continue
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(t)
            if not wrapped and t.untyped_storage()._cdata == key:
                found.append((t, entry))
        return found

    @staticmethod
    def _view(elements: _Elements, t: Tensor) -> Tensor:
        return elements.codes.as_strided(t.shape, t.stride(), t.storage_offset())

    def _read(self, elements: _Elements, t: Tensor) -> Map | None:
        if t.element_size() != elements.itemsize:
            return uniform(UNKNOWN, t.ndim, "memory shared by numbers of two sizes")
        codes = squeezed(self._view(elements, t).clone())
        if bool((codes == NONE).all()):
            return None
        return Map(codes, "a write into a part of a tensor" if int(codes.min()) < NONE else "")
