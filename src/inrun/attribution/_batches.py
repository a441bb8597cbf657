"""The part of an `Attribution` that a training loop calls: blocks of samples, optimizers' steps."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from inrun.attribution._loop import Loop
from inrun.capture import Resting
from inrun.errors import MisuseError
from inrun.optim import Arguments, StepHooks, gave_nothing, with_closure_run
from inrun.owners import IdReader, ownership


class Batches:
    """Blocks in.

    `_open` is the block that was opened without a `with`, and ends with the first backward pass
    after it.
    """

    _loop: Loop
    _ids: IdReader
    _hooks: StepHooks
    _open: ExitStack
    _release: weakref.finalize[Any, Any]

    @contextmanager
    def batch(self, ids: Iterable[Any], *, rows: Any = None, slots: Any = None) -> Iterator[None]:
        """Runs one forward and backward pass of these samples inside.

        Args:
            ids: one id per row of the tensors that come in, ints or strings; the same id may come
                again, also in one batch. Several blocks before one optimizer step are gradient
                accumulation.
            rows: where a sample has several rows, or ids are in another order than rows: for each
                row the place of its sample in `ids`. For pairs [0, 1, ..., n-1, 0, 1, ..., n-1].
                Where tensors differ in rows (texts, and several pictures for each), a mapping from
                the tensors that come in to such places; other tensors are no sample's.
            slots: where rows hold several samples (packed texts, nodes of graphs): an integer
                tensor over the axes with which the data begins, the place in `ids` of each slot's
                sample, -1 for slots of no sample.

        Raises:
            MisuseError: ids that do not fit the batch, no backward pass inside, nested blocks.
            InvariantError: the samples' shares do not sum to the gradient. On a GPU this is told
                by `optimizer.step()`.
            ReplaceLayerError: a layer makes samples depend on each other.
        """
        with self._block(ids, rows, slots, at_backward=False):
            yield

    def open_batch(self, ids: Iterable[Any], *, rows: Any = None, slots: Any = None) -> None:
        """Begins a block that ends by itself with the first `loss.backward()` after it.

        For callbacks of frameworks, which have no place for a `with` around the forward and the
        backward pass. See `batch`.

        Args:
            ids: one id per row of the batch.
            rows: see `batch`.
            slots: see `batch`.
        """
        self.close_batch()
        self._open.enter_context(self._block(ids, rows, slots, at_backward=True))

    def close_batch(self, *, failed: bool = False, skipped: bool = False) -> None:
        """Takes an open block's eyes off the loop; the next block and the step do it too.

        Args:
            failed: the pass came to no end and is not to be scored.
            skipped: there may have been no backward pass, and then nothing is to be scored.

        Raises:
            MisuseError: there was no backward pass in it.
        """
        self._leave(abandoned=failed or (skipped and not self._loop.ended))

    def _leave(self, *, abandoned: bool = False) -> None:
        """Leaves the block that is open, if one is; one whose pass failed as an exception would."""
        stack, self._open = self._open, ExitStack()
        if not abandoned:
            stack.close()
            return
        with suppress(_GivenUpError):
            stack.__exit__(_GivenUpError, _GivenUpError(), None)

    @contextmanager
    def _block(
        self, ids: Iterable[Any], rows: Any, slots: Any, *, at_backward: bool
    ) -> Iterator[None]:
        self._refuse_detached()
        self._hooks.require_in_place()
        if self._loop.inside:
            raise MisuseError(
                "attribution.batch blocks cannot be nested, nor be inside unattributed()."
            )
        if self._loop.paused:
            yield
            return
        self._loop.finish()
        names = self._ids.read(ids)
        owned = ownership(len(names), rows, slots, names)
        with self._loop.block(names, owned, at_backward=at_backward):
            yield

    @contextmanager
    def unattributed(self) -> Iterator[None]:
        """Runs a backward pass inside whose gradient belongs to no sample.

            with attribution.batch(ids):
                loss_fn(model, batch).backward()
            with attribution.unattributed():
                (1e-4 * sum(p.abs().sum() for p in model.parameters())).backward()
            optimizer.step()

        For penalties on parameters (L1, EWC), gradient penalties, and whatever else is added to
        `.grad`. What it does in the step is the books' entry `unattributed`; samples' values are
        those of the real step, to which it belongs. It may come before, between or after the
        blocks of a step, and a copy of the gradients is held while it runs.

        Raises:
            MisuseError: inside a block.
            NotSupportedError: sharded parameters.
        """
        self._refuse_detached()
        self._leave()
        if self._loop.inside:
            raise MisuseError(
                "attribution.unattributed() inside an attribution.batch(ids) block: close the "
                "block first, so that it is known which gradient is the samples'."
            )
        if self._loop.paused:
            yield
            return
        self._hooks.require_in_place()
        self._loop.finish()
        with self._loop.unattributed():
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside are trained as ever and not scored; the books show a gap."""
        with self._loop.pause():
            yield

    def _before_step(self, k: int, args: Any, kwargs: Any) -> Arguments | None:
        changed = None if self._loop.paused else with_closure_run(args, kwargs)
        self.close_batch(skipped=gave_nothing(changed))
        with Resting():
            self._loop.before(k)
        return changed

    def _after_step(self, k: int) -> None:
        with Resting():
            self._loop.after(k)

    def _stranger_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._loop.paused:
            self._loop.stranger_stepped(optimizer)

    def _refuse_detached(self) -> None:
        if not self._release.alive:
            raise MisuseError("This attribution was detached. Attach again to go on.")


class _GivenUpError(Exception):
    """Thrown into a block that is not to be scored."""
