"""`hold`: every use's factors are kept until the step is over: exact for every direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from inrun.capture._capture import Block, Capture, Watch
from inrun.capture._mode import CaptureMode
from inrun.capture._uses import Use
from inrun.factors import Factor


class Hold(Capture):
    """Keeps factors until the step is over.

    Of a sharded model they are built while the backward pass is at their layer: its weights, of
    which a rule may need some, are whole only there.
    """

    @contextmanager
    def _listening(self, block: Block, mode: CaptureMode, watch: Watch) -> Iterator[None]:
        if self._builds_early:

            def take(use: Use) -> None:
                with torch.no_grad():
                    self._take(block, use, mode, watch)

            mode.when_complete = take
        yield

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
            self._keep(block, name, factor)
        if self._builds_early:
            use.release()

    def _keep(self, block: Block, name: str, factor: Factor) -> None:
        block.keep(name, factor)

    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        block.keep(name, factor)
