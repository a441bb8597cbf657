"""`stream`: a parameter's factors meet their direction inside the backward pass, and are released.

They are contracted as soon as the parameter's own gradient is there, so that no factor outlives
its layer. What `stream` gives up: the direction is formed from the opening validation gradient
alone, and from the gradient as far as it has come in at that moment, before clipping and before
later micro-batches are added; both are expected to do what they did in the step before.

With several processes the direction is formed from the mean of their gradients, which is taken
here for one parameter at a time, since DistributedDataParallel takes it later and in buckets. It
goes over the wire twice for that.

`ReductionOrder`: the order in which several processes reduce gradients, the same in all of them.
Gradients come in by the order of each process's own graph, and processes whose orders differ would
add one parameter's gradient to another's. So each parameter has its turn, and one that is ready
earlier waits. The turns are those of the first process's first backward pass; until that is known,
the reverse of the parameters' order, in which gradients mostly come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from inrun.capture._block import Block, Watch
from inrun.capture._block_setting import unseen
from inrun.capture._capture import Capture
from inrun.capture._mode import CaptureMode
from inrun.distributed import Processes
from inrun.factors import Factor


class Stream(Capture):
    """Contracts inside the backward pass, with what whoever forms the directions watches by."""

    contracts_early = True

    def __init__(
        self,
        model: nn.Module,
        trained: Mapping[str, Tensor],
        processes: Processes | None = None,
    ):
        super().__init__(model, trained, processes)
        self._turns = ReductionOrder(trained, self.processes)

    @contextmanager
    def _listening(self, block: Block, mode: CaptureMode, watch: Watch) -> Iterator[None]:
        def on_gradient(name: str) -> Callable[[Tensor], None]:
            def contract(_: Tensor) -> None:
                with unseen(), torch.no_grad():
                    for turn in self._turns.ready(name):
                        self._contract_reached(block, mode, turn, watch)

            return contract

        self._turns.begin()
        with ExitStack() as stack:
            for name, p in self.trained.items():
                stack.callback(p.register_post_accumulate_grad_hook(on_gradient(name)).remove)
            yield

    def _contract_reached(self, block: Block, mode: CaptureMode, name: str, watch: Watch) -> None:
        factors: list[tuple[str, Factor]] = []
        for use in mode.uses:
            if use.reached and name in use.pending:
                if not self._untold(use, mode):
                    factors += [(how, factor) for _, how, factor in use.factors(only=name)]
                use.pending.discard(name)
                if not use.pending:
                    use.release()
        if name in mode.skipped:  # a gap as a whole
            factors = []
        for how, factor in factors:
            self._register(name, how, factor, watch)
        self._contract(block, name, [factor for _, factor in factors], watch)

    @staticmethod
    def _contract(block: Block, name: str, factors: Sequence[Factor], watch: Watch) -> None:
        assert watch.contract is not None
        for values in watch.contract(name, factors):
            block.values_BK = values if block.values_BK is None else block.values_BK + values

    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        with torch.no_grad():
            self._contract(block, name, [factor], watch)

    def _collect(self, block: Block, mode: CaptureMode, watch: Watch) -> None:
        """What still waits for its turn, or came after it; else values are in the block."""
        late = {name for use in mode.uses if use.reached for name in use.pending}
        with torch.no_grad():
            for name in self._turns.rest(late):
                self._contract_reached(block, mode, name, watch)


class ReductionOrder:
    """Each parameter's place in a block's backward pass; with one process, just as they come."""

    def __init__(self, names: Iterable[str], processes: Processes):
        self._processes = processes
        self._order = list(reversed(list(names)))
        self._learned = False
        self.begin()

    def begin(self) -> None:
        self._next, self._ready, self._came = 0, set[str](), dict[str, None]()

    def ready(self, name: str) -> Iterator[str]:
        """A gradient came in: whose turn it is now, perhaps nobody's."""
        if self._processes.size == 1:
            yield name
            return
        self._came[name] = None
        self._ready.add(name)
        while self._next < len(self._order) and self._order[self._next] in self._ready:
            self._next += 1
            yield self._order[self._next - 1]

    def rest(self, late: set[str]) -> Iterator[str]:
        """The backward pass is over: who has had no turn yet, and who must have another.

        `late` are those of which something came in after their turn, in this process.
        """
        if self._processes.size == 1:
            return
        waiting = self._order[self._next :]
        yield from waiting
        none_late = self._processes.all([n not in late or n in waiting for n in self._order])
        yield from [n for n, none in zip(self._order, none_late, strict=True) if not none]
        if not self._learned:
            came = self._processes.gathered(list(self._came))[0]
            self._order = [*came, *(name for name in self._order if name not in came)]
            self._learned = True
