"""`hold`: every use's factors are kept until the step is over: exact for every direction.

`offload`: as `hold`, with what is held on the CPU while it waits.

Each layer's factors are built when the backward pass is at the layer, and moved: on the device only
those of the layer at hand are there beside what training itself keeps. A tensor that several
parameters' factors share (an input of three projections, an output gradient of a weight and its
bias) is moved once. For the contraction one parameter's factors at a time are brought back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from inrun.capture._block import Block, Watch
from inrun.capture._capture import Capture
from inrun.capture._mode import CaptureMode
from inrun.capture._uses import Use
from inrun.factors import Dense, Factor, compute_dtype, shares_are_less


class Hold(Capture):
    """Keeps factors until the step is over.

    Of a sharded model they are built while the backward pass is at their layer: its weights, of
    which a rule may need some, are whole only there.
    """

    @contextmanager
    def _listening(self, block: Block, mode: CaptureMode, watch: Watch) -> Iterator[None]:
        def take(use: Use) -> None:
            if self._builds_early:
                taken = self._take
            elif not mode.passes_again and use.is_long:
                taken = self._take_shares
            else:
                return
            with torch.no_grad():
                taken(block, use, mode, watch)

        mode.when_complete = take
        try:
            yield
        finally:
            mode.when_complete = None  # or both would wait for the collector, with the block

    @property
    def _builds_early(self) -> bool:
        """Whether factors are built inside the backward pass."""
        return self.sharded

    def _collect(self, block: Block, mode: CaptureMode, watch: Watch) -> None:
        for use in mode.uses:
            if use.reached and use.held:
                self._take(block, use, mode, watch)

    def _take(self, block: Block, use: Use, mode: CaptureMode, watch: Watch) -> None:
        factors = () if self._untold(use, mode) else use.factors()
        for name, how, factor in factors:
            self._register(name, how, factor, watch)
            self._keep(block, name, factor, watch)
        if self._builds_early:
            use.release()

    def _take_shares(self, block: Block, use: Use, mode: CaptureMode, watch: Watch) -> None:
        """Keeps the shares themselves of long sequences, where they are smaller and no more work.

        So it is with adapters and gains: where a checkpoint recomputes activations so that they
        need not be kept, they are not kept for these either.
        """
        found = list(use.factors())
        if not all(shares_are_less(factor) for _, _, factor in found) or self._untold(use, mode):
            return
        for name, how, factor in found:
            shares = Dense(factor.materialize(compute_dtype(self.trained[name])))
            self._register(name, how, shares, watch)
            self._keep(block, name, shares, watch)
        use.release()

    def _keep(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        self._hold(block, name, factor, watch)

    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        block.keep(name, factor)


HOST = torch.device("cpu")


def to_host(t: Tensor) -> Tensor:
    """A copy on the CPU."""
    return t.detach().to(HOST, copy=True)


class Moves:
    """Copies of tensors somewhere else, each made once.

    An original is not kept alive: what is remembered of it is that its storage was this one, by a
    weak reference, under which no other storage can take the same identity.

    Args:
        move: makes a copy.
    """

    def __init__(self, move: Callable[[Tensor], Tensor] = to_host):
        self._move = move
        self._moved: dict[tuple[object, ...], tuple[StorageWeakRef, Tensor]] = {}

    def __call__(self, t: Tensor) -> Tensor:
        """The copy: the same one for the same elements in the same order."""
        storage = StorageWeakRef(t.untyped_storage())
        place = (
            storage.cdata, t.storage_offset(), t.dtype, tuple(t.shape), t.stride(), t._version
        )  # fmt: skip
        if place not in self._moved:
            self._moved[place] = storage, self._move(t)
        return self._moved[place][1]


class Offload(Hold):
    """Keeps factors on the CPU until the step is over."""

    @property
    def _builds_early(self) -> bool:
        return True

    @contextmanager
    def _listening(self, block: Block, mode: CaptureMode, watch: Watch) -> Iterator[None]:
        self._moves = Moves()
        with super()._listening(block, mode, watch):
            yield

    def _keep(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        block.keep(name, factor.mapped(self._moves))

    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        block.keep(name, factor.mapped(to_host))


class Sketching(Hold):
    """Keeps a scoring window's r x r numbers per sample and layer; factors where none is open.

    They are formed while the backward pass is at their layer, whose operands are in the cache.
    """

    @property
    def _builds_early(self) -> bool:
        return True

    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        if watch.sketch is None or watch.factors:
            block.keep(name, factor)
        if watch.sketch is not None:
            block.sketches.setdefault(name, []).append(watch.sketch(name, factor))
