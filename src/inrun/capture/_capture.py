"""Blocks of samples: from the operations of a forward and a backward pass to their factors.

What becomes of the factors is the captures' own: see `_hold` and `_stream`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from inrun.capture._block import NOBODY, Block, Watch
from inrun.capture._block_setting import compiled_parts, opaque_calls, uncompiled
from inrun.capture._coverage import Coverage
from inrun.capture._gradient_check import GradientCheck
from inrun.capture._inputs import Inputs
from inrun.capture._mode import CaptureMode
from inrun.capture._owner_checks import OwnerChecks
from inrun.capture._recomputed import Recomputed
from inrun.capture._recorded import Missed
from inrun.capture._sources import GatheredParameters, Root
from inrun.capture._uses import Use
from inrun.distributed import Processes, is_sharded
from inrun.errors import NotSupportedError
from inrun.factors import Dense, Factor
from inrun.owners import Owners, Ownership, ownership


class Capture(ABC):
    """Turns batch blocks into factors; one strategy per subclass.

    `contracts_early`: whether values are formed inside the backward pass, and factors are gone.
    """

    contracts_early: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        trained: Mapping[str, Tensor],
        processes: Processes | None = None,
    ):
        self.trained = dict(trained)
        self.processes = processes or Processes()
        self.inputs = Inputs(model)
        self.coverage = Coverage(model, trained)
        self.stacks: set[str] = set()  # parameters of which each matrix met rows of its own
        self.check = GradientCheck(trained, processes=self.processes)
        self.sharded = any(map(is_sharded, trained.values()))
        self.called = self.processes if self.sharded else Processes()  # by its passes
        self._gathered = GatheredParameters(model, trained) if self.sharded else None
        self.owner_checks = OwnerChecks(
            model, trained, self.coverage, self.inputs, self.processes, sharded=self.sharded
        )
        self._reduced = True
        self.low_precision = False
        self.compiled = bool(compiled_parts(model))
        self._missed: dict[str, str] = {}
        self._terms: dict[str, str] = {}
        self._roots = [Root(name, p) for name, p in trained.items()]
        ids = {id(p) for p in trained.values()}
        self._trained_ids = frozenset(ids)
        rest = [*model.parameters(), *model.buffers()]
        self._roots += [
            Root(name, p, scored=False)
            for name, p in model.named_parameters()
            if p.requires_grad and id(p) not in ids
        ]
        self._copies: weakref.WeakValueDictionary[Any, Tensor] = weakref.WeakValueDictionary()
        self._same_for_all = [t for t in rest if id(t) not in ids]  # kept, so that ids stay theirs
        self._constants = frozenset(id(t) for t in self._same_for_all)

    def mode(self, owned: Ownership) -> CaptureMode:
        """A mode that sees these parameters' uses in a block of these samples."""
        constants = self._constants | self.inputs.constants
        same_for_all = constants | self._trained_ids  # known at once, without asking what they are
        owners = Owners(self.inputs.entries(owned), same_for_all, self.inputs.constants)
        return CaptureMode(self._roots, constants, owners, self._gathered)

    @contextmanager
    def block(
        self, owned: Ownership | int, watch: Watch = NOBODY, *, at_backward: bool = False
    ) -> Iterator[Block]:
        """Records what runs inside; the block that it gives is filled when it ends.

        Args:
            owned: how many samples, and whose rows or slots are whose, where that is said.
            watch: who looks on.
            at_backward: the block ends with its first backward pass, not when it is left: whatever
                runs between the two may change gradients already.

        Raises:
            MisuseError: no operation used a trained parameter, no gradient came back, or other
                processes are not at the end of a block.
            NotSupportedError: a gradient is sparse.
        """
        owned = ownership(owned) if isinstance(owned, int) else owned
        block, mode = Block(owned.samples, self._copies), self.mode(owned)
        self.check.sums.discard()
        self._note_reduction()
        calls = self.owner_checks.begin(mode, owned, step=watch.step, keeps_calls=watch.calls)

        def before_backward(starts: Sequence[Tensor], gradients: Any) -> None:
            self._note_reduction()
            self.owner_checks.before_backward(mode, starts, gradients)

        mode.before_backward = before_backward
        if not self.sharded:
            mode.recomputed = Recomputed()

        def end() -> None:
            self._fill(block, mode, watch)
            mode.owners.by_entry = None
            self.owner_checks.forget(mode)
            self.owner_checks.end(calls, lambda: self.mode(owned))
            if calls is not None and watch.calls:
                block.calls = calls.found
            self._take_down()
            block.ended = True

        if at_backward:
            mode.after_backward = end
        try:
            with (
                uncompiled(),
                self._listening(block, mode, watch),
                self.inputs.watched(mode.owners, calls),
                opaque_calls(mode.opaque),
                mode,
            ):
                yield block
        finally:
            self.owner_checks.forget(mode)  # also of a block that failed
            # or what was captured would wait for the collector, which finds rings late
            mode.before_backward = mode.after_backward = None
        if not mode.over:
            end()

    def _note_reduction(self) -> None:
        """Whether the processes' gradients are averaged in this backward pass, or left to wait."""
        self._reduced = self.processes.reducing()

    def _fill(self, block: Block, mode: CaptureMode, watch: Watch) -> None:
        mode.require_uses()
        self.low_precision |= any(use.low_precision for use in mode.uses)
        self._collect(block, mode, watch)
        for use in mode.uses:
            use.release()  # the graph's hooks know it as long as the loss lives
        self._missed, self._terms = mode.skipped, mode.terms
        for name in self._missed:
            block.factors.pop(name, None)
            block.sketches.pop(name, None)
        self.check.exclude(self._missed)
        self.coverage.followed(mode)

    def _take_down(self) -> None:
        """Records what the invariant needs of `.grad`, for `finish`."""
        if self.sharded and not self._reduced:  # this process's own gradient can nowhere be read
            self.check.end_unreduced_block()
            return
        if self._reduced:
            self.processes.require_alike("the end of a block")
        gradients = {name: p.grad for name, p in self.trained.items()}
        for name, gradient in gradients.items():
            if gradient is not None and gradient.is_sparse:
                raise NotSupportedError(
                    f"The gradient of {name} is sparse, which SGD and Adam here do not read. Build "
                    "its layer with sparse=False."
                )
        self.check.end_block(
            gradients, self.low_precision, {**self._terms, **self._missed}, reduced=self._reduced
        )

    def finish(self) -> list[bool]:
        """Checks the invariant of blocks that ended: for each, whether only it is in `.grad`.

        Raises:
            InvariantError: the shares do not sum to the gradient.
        """
        flags = self.check.finish()
        if flags:
            self.coverage.measured(self.check.scaling.norms, self.check.gaps)
        return flags

    def next_step(self) -> None:
        """Starts the sums of a new step, and copies of parameters anew.

        Fused optimizers leave version counters as they are, so that an older copy, which a step
        that momentum still pays holds, would be taken for the present weights.
        """
        self.check.next_step()
        self._copies = weakref.WeakValueDictionary()

    def step_over(self) -> None:
        """Nothing holds a block of the step any more: what is checked now and then is checked."""
        self.owner_checks.step_over()

    def unowned(self, added: Mapping[str, Tensor], watch: Watch = NOBODY) -> Block:
        """The block of a gradient that is no sample's, `added` to `.grad` by parameter name."""
        block = Block(1, self._copies, owned=False)
        self.check.sums.discard()
        for name, gradient in added.items():
            factor = Dense(gradient.unsqueeze(0))
            self.check.sums.add(name, factor)
            self._hold(block, name, factor, watch)
        gradients = {name: p.grad for name, p in self.trained.items()}
        self.check.end_block(gradients, self.low_precision, unowned=True)
        block.ended = True
        return block

    @abstractmethod
    @contextmanager
    def _listening(self, block: Block, mode: CaptureMode, watch: Watch) -> Iterator[None]:
        """Whatever must be in place during the forward and the backward pass."""

    @abstractmethod
    def _collect(self, block: Block, mode: CaptureMode, watch: Watch) -> None:
        """Fills the block after the backward pass."""

    @abstractmethod
    def _hold(self, block: Block, name: str, factor: Factor, watch: Watch) -> None:
        """What becomes of a factor that was built outside of a block's passes."""

    @property
    def _builds_early(self) -> bool:
        """Whether factors are built inside the backward pass."""
        return True

    def _register(self, name: str, how: str, factor: Factor, watch: Watch) -> None:
        self.coverage.saw(name, how)
        self.check.sums.add(name, factor, early=self._builds_early)
        if factor.is_stack:
            self.stacks.add(name)
        if watch.factor is not None:
            watch.factor(name, factor)

    def _untold(self, use: Use, mode: CaptureMode) -> bool:
        """Whether a use that was reached cannot be told: then it is a gap.

        It has gradient at slots of no sample, or its inputs did not come again.
        """
        if use.waits:
            reason = f"{use.name}: a checkpoint did not recompute what its shares are made of"
        elif use.strays:
            reason = f"{use.name}: slots that belong to no sample carry gradient"
        else:
            return False
        mode.missed.append(Missed(tuple(sorted(use.roots)), reason, reached=True))
        return True
