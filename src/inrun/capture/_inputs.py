"""What enters a block: which tensors are the samples' data, and what the model is called with.

One pass over a few validation rows, before the first step, shows what enters that is no data (a
bank, a table that is no buffer), where the batch lies in tensors of each kind, and with how many
axes the model is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inrun.capture._calls import Calls
from inrun.errors import MisuseError
from inrun.owners import Axes, Entries, Map, Owners, Ownership, Roots
from inrun.utility import tensors_in


class Inputs:
    """What is known of the tensors that enter a model's blocks."""

    def __init__(self, model: nn.Module):
        self._model = model
        self.axes = Axes()
        self.silent = False  # while calls are made again
        self._roots = Roots()
        self._kept: list[Tensor] = []  # so that ids stay theirs
        self.constants: frozenset[int] = frozenset()
        self._called_with: dict[str, tuple[int, tuple[int, ...]]] = {}  # axes, those of samples
        self.notes: dict[str, None] = {}

    def entries(self, owned: Ownership) -> Entries:
        return Entries(owned, self.axes, self._roots)

    def lies(self, axis: int, known: Mapping[tuple[int, bool], int]) -> None:
        """Says where the batch lies in tensors that enter.

        `known` is by number of axes and whether numbers are floating-point, `axis` for all others.
        """
        self.axes = Axes(axis, known)

    def learn(self, batch: Sequence[Tensor], entered: Sequence[Tensor]) -> None:
        """Takes note of a validation pass: what `entered` beside its batch is no samples' data."""
        own = {id(t) for t in batch}
        self._kept = [t for t in entered if id(t) not in own]
        self.constants = frozenset(id(t) for t in self._kept)

    @contextmanager
    def watched(
        self, owners: Owners, calls: Calls | None = None, *, learning: bool = False
    ) -> Iterator[None]:
        """Takes note of the outermost model call while the block runs.

        Raises MisuseError where nothing that the model is called with is any sample's.
        """
        depth = 0

        def before(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal depth
            if self.silent:
                return
            depth += 1
            if depth == 1:
                owners.in_model = True
                given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
                with torch._C.DisableTorchFunction():
                    if learning:
                        for path, t in tensors_in("", given):
                            m = owners.of(t)
                            self._called_with[path] = t.ndim, () if m is None else m.varying
                    else:
                        self._called(owners, given)
                    if calls is not None:
                        calls.before(model, args, kwargs)

        def after(model: nn.Module, _: Any, output: Any) -> None:
            nonlocal depth
            if self.silent:
                return
            depth = max(0, depth - 1)
            owners.in_model = depth > 0
            if calls is not None and depth == 0:
                with torch._C.DisableTorchFunction():
                    calls.after(model, output)

        first = self._model.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        with first, self._model.register_forward_hook(after, always_call=True):
            yield

    def _called(self, owners: Owners, given: Mapping[Any, Any]) -> None:
        named = list(tensors_in("", given))
        maps = {path: owners.of(t) for path, t in named}
        if None in maps.values() and self._take_lists(owners, given):
            return
        if any(m is not None for m in maps.values()):
            self._compare_axes(owners, named, maps)
            self._note_order(maps)
            return
        if not self._take_data(owners, named) and named and not owners.entries.any:
            raise MisuseError(owners.entries.missing())

    def _compare_axes(
        self, owners: Owners, named: Sequence[tuple[str, Tensor]], maps: Mapping[str, Map | None]
    ) -> None:
        """Raises where samples lie in other axes than in validation: one is taken for many."""
        if owners.entries.owned.given or owners.samples == 1:
            return
        for path, t in named:
            ndim, axes = self._called_with.get(path, (t.ndim, ()))
            m = maps[path]
            if m is None or not m.varying or not axes:
                continue
            if t.ndim < ndim or (t.ndim == ndim and m.varying != axes):
                raise MisuseError(
                    f"The model is called with a tensor of shape {tuple(t.shape)}, in which "
                    f"{owners.samples} samples would lie along axis {m.varying[0]}; in the "
                    f"validation pass it has {ndim} axes, and samples lie along axis {axes[0]}. "
                    "An axis may just happen to be as long as there are ids. Say with rows= or "
                    "slots= of attribution.batch whose the entries are."
                )

    def _note_order(self, maps: Mapping[str, Map | None]) -> None:
        for m in maps.values():
            if m is not None and m.remembered("reordered", lambda m=m: (_reordered(m),))[0]:  # type: ignore[misc]
                self.notes[
                    "Rows were put in another order inside attribution.batch(ids) before the model "
                    "was called. Ids are taken for the rows in the order in which they came in. If "
                    "they are meant for the rows that the model sees, put rows in order before the "
                    "block, or say so with rows=."
                ] = None

    def _take_lists(self, owners: Owners, given: Mapping[Any, Any]) -> bool:
        """A list with one item per sample: each item is its sample's as a whole.

        Also where some of them just happen to be as long as there are samples; but not where the
        validation pass shows that samples lie within the items.
        """
        taken = False
        if owners.entries.owned.given:
            return False
        for place, value in given.items():
            if isinstance(value, (list, tuple)) and len(value) == owners.samples:
                paths = [path for path, _ in tensors_in(f".{place}", value)]
                if any(self._called_with.get(path, (0, ()))[1] for path in paths):
                    continue
                for sample, item in enumerate(value):
                    for _, t in tensors_in("", item):
                        owners.give(t, owners.entries.whole(sample, t.ndim))
                        taken = True
        return taken

    def _take_data(self, owners: Owners, named: Sequence[tuple[str, Tensor]]) -> bool:
        """What enters validation passes too, if it is the model's only argument; one sample alone.

        A loop may keep training data and validation data in one tensor; and a model may be called
        with one sample without an axis for it.
        """
        taken = False
        for path, t in named:
            if isinstance(t, nn.Parameter) or t.grad_fn is not None:
                continue
            found = owners.entries.map_of(t) if id(t) in self.constants else None
            if owners.samples == 1 and self._called_with.get(path, (0,))[0] == t.ndim + 1:
                found = owners.entries.whole(0, t.ndim)
            if found is not None:
                owners.give(t, found)
                taken = True
        return taken


def _reordered(m: Map) -> bool:
    """Whether a map has each sample once, and not in the order of the ids."""
    if m.how == "given" or len(m.varying) != 1 or not m.owned:
        return False
    flat = m.codes.flatten()
    falls = len(flat) > 1 and bool((flat[1:] < flat[:-1]).any())
    return falls and len(torch.unique(flat)) == len(flat)
