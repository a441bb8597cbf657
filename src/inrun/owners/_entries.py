"""Data that enters a block, and whose its entries are: what the caller's ids mean.

`batch(ids)`: entry j along the batch axis is sample j. `rows=r`: entry j is sample r[j]; or of
several tensors, t's entry j is sample r[t][j]. `slots=s`: the tensors that begin with the axes of s
belong to samples slot by slot. Nothing else is data of a sample: parameters, buffers, and whatever
enters the validation passes beside their batch are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inrun.errors import MisuseError
from inrun.owners._map import NONE, Map


class Ownership(NamedTuple):
    """How many samples a block has, and what is said of rows or slots, if anything is."""

    samples: int
    rows: Tensor | None = None
    slots: Tensor | None = None
    ids: tuple[Any, ...] | None = None
    tensors: tuple[tuple[Tensor, Tensor], ...] | None = None  # each with the places of its rows

    @property
    def given(self) -> bool:
        return any(said is not None for said in (self.rows, self.slots, self.tensors))

    def along(self, t: Tensor, axes: Axes) -> tuple[int, Tensor | None]:
        """The axis of a tensor's rows, and their places if it has as many rows as there are."""
        axis = axes.of(t) if self.tensors is None else 0
        if self.tensors is not None:
            places = next((rows for own, rows in self.tensors if own is t), None)
        else:
            places = torch.arange(self.samples) if self.rows is None else self.rows
        fits = places is not None and t.ndim > axis and t.shape[axis] == len(places)
        return axis, places if fits else None


class Axes(NamedTuple):
    """Where the batch lies in tensors that enter, by number of axes and kind of numbers."""

    default: int = 0
    known: Mapping[tuple[int, bool], int] | None = None

    def of(self, t: Tensor) -> int:
        known = self.known or {}
        return known.get((t.ndim, t.is_floating_point()), self.default)


def ownership(
    samples: int, rows: Any = None, slots: Any = None, ids: Sequence[Any] | None = None
) -> Ownership:
    """What a block's caller says, checked.

    Args:
        samples: B, the number of ids.
        rows: for each row of the batch, the place of its sample in the ids; or such places for
            each of several tensors.
        slots: the same for each slot (token, node), -1 for slots of no sample.
        ids: the ids themselves, to recognize a look-up by them.

    Raises:
        MisuseError: places out of range, not integers, both given at once.
    """
    if rows is not None and slots is not None:
        raise MisuseError("Give rows= or slots= to attribution.batch(ids), not both.")
    own = tuple(ids) if ids is not None else None
    if isinstance(rows, Mapping):
        if not rows or not all(isinstance(t, Tensor) for t in rows):
            raise MisuseError(
                "rows= is a mapping, but not from tensors: its keys are the very tensors that the "
                "model is called with, its values the places of their rows in the ids."
            )
        tensors = tuple((t, _places(r, "rows", samples, lowest=0)) for t, r in rows.items())
        return Ownership(samples, ids=own, tensors=tensors)
    if rows is not None:
        return Ownership(samples, rows=_places(rows, "rows", samples, lowest=0), ids=own)
    if slots is not None:
        return Ownership(samples, slots=_places(slots, "slots", samples, lowest=NONE), ids=own)
    return Ownership(samples, ids=own)


def _places(given: Any, name: str, samples: int, *, lowest: int) -> Tensor:
    try:
        places = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise MisuseError(
            f"{name}= is no tensor of integers ({error}): it says for each of the batch's {name} "
            "which of the ids it belongs to, by its place."
        ) from None
    if places.dtype.is_floating_point or places.dtype == torch.bool or places.is_complex():
        raise MisuseError(
            f"{name}= holds numbers of type {places.dtype}; it must hold integers, the places of "
            f"samples in the ids, 0 to {samples - 1}."
        )
    if places.ndim == 0 or (name == "rows" and places.ndim != 1):
        raise MisuseError(
            f"{name}= has {places.ndim} axes; "
            + ("one place per row is needed." if name == "rows" else "at least one is needed.")
        )
    if places.numel() and not (lowest <= int(places.min()) and int(places.max()) < samples):
        raise MisuseError(
            f"{name}= holds places from {int(places.min())} to {int(places.max())}, but "
            f"{samples} ids were given: places run from {lowest} to {samples - 1}"
            + (" (-1: no sample's)." if lowest == NONE else ".")
        )
    return places.to(torch.int32)


class Roots:
    """Entry maps of earlier blocks with all that became of them, so that it need not be done again.

    Dropped when too much has gathered: shapes may be others in every block.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._maps: dict[Any, Map] = {}

    def get(self, key: Any, codes: Any) -> Map:
        """The map under a key, made by calling `codes` where there is none."""
        found = self._maps.get(key)
        if found is None:
            if len(self._maps) >= self.LIMIT:
                self._maps.clear()
            found = self._maps[key] = Map(*codes())
        return found


class Entries:
    """Gives tensors that enter a block their maps; `roots` are those of earlier blocks."""

    def __init__(self, owned: Ownership, axes: Axes, roots: Roots):
        self.owned, self._axes, self._roots = owned, axes, roots
        self.came: dict[tuple[int, ...], None] = {}  # shapes of what entered and is nobody's
        self.any = False
        self.everything = False  # all data is sample 0's, whatever its shape

    def map_of(self, t: Tensor) -> Map | None:
        """Whose the entries of a tensor that enters are; None where no axis fits."""
        found = self.whole(0, t.ndim) if self.everything else self._map_of(t)
        if found is None:
            if len(self.came) < 20:
                self.came[tuple(t.shape)] = None
        else:
            self.any = True
        return found

    def _map_of(self, t: Tensor) -> Map | None:
        if self.owned.slots is not None:
            return self._by_slot(t, self.owned.slots)
        axis, places = self.owned.along(t, self._axes)
        if places is None:
            return None
        if not self.owned.given:
            key: Any = (self.owned.samples, t.ndim, axis)
            return self._roots.get(key, lambda: (_along(places, t.ndim, axis),))
        key = ("rows", tuple(places.tolist()), t.ndim, axis)
        return self._roots.get(key, lambda: (_along(places, t.ndim, axis), "", "given"))

    def along(self, ndim: int, axis: int) -> Map:
        """The map of a batch of which it is known along which axis its samples lie."""
        self.any = True
        count = self.owned.samples
        key = (count, ndim, axis)
        return self._roots.get(key, lambda: (_along(torch.arange(count), ndim, axis),))

    def _by_slot(self, t: Tensor, slots: Tensor) -> Map | None:
        """Axes of length 1 do not count, so that (1, T) fits (T,) as well as (1, T, d)."""
        wanted = [n for n in slots.shape if n != 1]
        shape: list[int] = []
        left = list(wanted)
        for n in t.shape:
            if left and n == left[0]:
                shape.append(left.pop(0))
            elif n == 1 or not left:
                shape.append(1)
            else:
                return None
        if left or not t.ndim or (not wanted and t.numel() != 1):
            return None
        key = ("slots", id(slots), tuple(shape))
        return self._roots.get(key, lambda: (slots.reshape(shape).contiguous(), "", "given"))

    def whole(self, sample: int, ndim: int) -> Map:
        """The map of a tensor that is one sample's as a whole."""
        self.any = True
        key = ("whole", sample, ndim)
        return self._roots.get(
            key, lambda: (torch.full((1,) * ndim, sample, dtype=torch.int32), "", "followed")
        )

    def missing(self) -> str:
        """What is wrong where nothing that came in fits."""
        shapes = ", ".join(str(shape) for shape in self.came) or "no tensor at all"
        if self.owned.slots is not None:
            return (
                f"slots= has shape {tuple(self.owned.slots.shape)}, and no tensor that came in "
                f"begins with those axes: {shapes}. Give a map of the slots that the model sees."
            )
        if self.owned.tensors is not None:
            return f"rows= names tensors that did not come in; these did: {shapes}."
        if self.owned.rows is not None:
            return (
                f"rows= has {len(self.owned.rows)} entries, and no tensor that came in has as many "
                f"rows: {shapes}. Give one place per row of the batch."
            )
        return (
            f"{self.owned.samples} sample ids were given, but no tensor with "
            f"{self.owned.samples} rows came in: {shapes}. Pass one id per row to "
            "attribution.batch(ids); rows= where a sample has several rows, slots= where rows "
            "hold several samples."
        )


def _along(places: Tensor, ndim: int, axis: int) -> Tensor:
    shape = [1] * ndim
    shape[axis] = len(places)
    return places.to(torch.int32).reshape(shape)
