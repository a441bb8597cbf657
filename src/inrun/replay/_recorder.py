"""Records a run while it trains: blocks in, a trajectory out. Training is not changed."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inrun.distributed import is_sharded
from inrun.errors import InvariantError, MisuseError, NotSupportedError, ReplaceLayerError
from inrun.optim import StepHooks
from inrun.owners import IdReader
from inrun.replay import _snapshot
from inrun.replay._agreement import Marks, check_first_step, edited, marks, unexpected
from inrun.replay._folder import Block, Folder, Keeper, Memory, Step
from inrun.replay._replica import (
    Fetch,
    Losses,
    Replica,
    Task,
    gradient_norm,
    settings_of,
    states_for_blocks,
)
from inrun.replay._snapshot import Schedule, drawn_since, random_state
from inrun.replay._trajectory import Trajectory

GIBIBYTE = 2**30


def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    fetch: Fetch,
    folder: str | os.PathLike[str] | None = None,
    *,
    clip_norm: float | None = None,
    weights: Callable[[Any], Tensor] | None = None,
    budget: int = GIBIBYTE,
    steps: int | None = None,
) -> Recorder:
    """Records an ordinary training loop from now to `finish()`, so that it can be played again.

        recorder = inrun.record(model, optimizer, losses, fetch, "run", clip_norm=1.0)
        for ids in batches:
            with recorder.batch(ids):
                losses(model, fetch(ids)).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(); optimizer.zero_grad()
        run = recorder.finish()

    It may run beside `inrun.attach`: put both blocks round the same pass.

    Args:
        model: the model that is trained. BatchNorm in it is refused.
        optimizer: any that `inrun.attach` takes; look-ahead needs one with a smooth rule. Nothing
            else may change weights or moments between two steps: that is refused.
        losses: `losses(model, batch)` gives (B,) terms, one per row, that *add up* to the loss
            that the loop calls `backward()` on: for a mean, each row's loss over the number of
            rows. It is held against the loop's own gradient at the first step.
        fetch: `fetch(ids)` gives the batch of these rows again, the same one every time.
        folder: a new folder; None keeps the run in memory, for as long as the process lives.
        clip_norm: what the loop passes to `clip_grad_norm_`, if it clips.
        weights: `weights(batch)` gives the (B,) weights of the rows in the block's mean, where it
            is a weighted mean (token counts); None where all weigh the same.
        budget: bytes that the recorded states may take.
        steps: how long the run will be, if known: the states to keep are then chosen at once.

    Raises:
        StoreError: the folder holds a run.
        NotSupportedError: the optimizer has no rule here, or parameters are sharded.
        ReplaceLayerError: a layer makes rows depend on each other.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ReplaceLayerError(
                f"{name} is a {type(module).__name__}: every row's loss depends on all others, "
                "and running statistics are state that no optimizer step explains. Replace it, for "
                "instance by GroupNorm."
            )
    if any(map(is_sharded, model.parameters())):
        raise NotSupportedError(
            "The model's parameters are sharded (fully_shard), and a run is played again on whole "
            "copies of the model. Record a run of a smaller model, or use inrun.attach alone."
        )
    keeper = Memory() if folder is None else Folder(Path(folder))
    replica = Replica(model, optimizer, Task(losses, fetch, clip_norm, weights), keeper)
    keeper.create()
    return Recorder(model, optimizer, replica, keeper, budget, steps)


class Recorder:
    """What `inrun.record` returns; see there."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        replica: Replica,
        keeper: Keeper,
        budget: int,
        steps: int | None,
    ):
        self._model, self._optimizer = model, optimizer
        self._replica, self._keeper = replica, keeper
        self._parameters = _snapshot.names_of(model, optimizer)
        snapshot = _snapshot.take(self._parameters, model, optimizer)
        # thrice: Adam's moments, which a young optimizer has not made yet
        moments = 3 * _snapshot.size_of(snapshot)
        self._schedule = Schedule(budget // max(1, moments), steps)
        self._budget = budget
        self._blocks: list[tuple[Block, dict[str, Tensor] | None]] = []
        self._norm, self._steps = 0.0, 0
        self._inside = self._stepping = False
        self._closing: Marks | None = None  # of the state that the last step left
        self._trajectory: Trajectory | None = None
        self._ids = IdReader()
        hooks = StepHooks(self, [optimizer])  # dropping the recorder takes them off
        self._release = weakref.finalize(self, hooks.remove)

    @contextmanager
    def batch(self, ids: Iterable[Any]) -> Iterator[None]:
        """One forward and backward pass of these rows inside; several before a step accumulate.

        Raises:
            MisuseError: ids that are neither ints nor strings, nested blocks, or a finished
                recorder.
        """
        if self._trajectory is not None or self._inside:
            what = "was finished" if self._trajectory is not None else "is inside a block already"
            raise MisuseError(f"This recorder {what}: no block can begin.")
        names, before = self._ids.read(ids), random_state(self._model)
        mode = self._replica.mode_of(self._model)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
        drew = drawn_since(before, self._model)
        self._blocks.append((Block(names, mode, drew), before if drew else None))
        self._norm = gradient_norm(self._parameters)

    def _before_step(self, k: int, args: Any, kwargs: Any) -> None:
        arguments = [*args, *kwargs.values()]
        if any(callable(argument) for argument in arguments):
            raise MisuseError(
                "optimizer.step(closure) computes its gradient inside the step, where no block can "
                "say whose it is. Run forward and backward in recorder.batch(ids), then step()."
            )
        if not self._blocks:
            raise MisuseError(
                "An optimizer step came without a recorder.batch(ids) block before it. A run with "
                "a step missing cannot be played again. Wrap each forward and backward pass in one."
            )
        if getattr(self._optimizer, "grad_scale", None) is not None:
            raise NotSupportedError(
                "A gradient scaler unscales inside this fused optimizer's kernel; such a step is "
                "not recorded. Use fused=False, or bfloat16, which needs no scaler."
            )
        self._require_unedited()
        step = Step(
            self._steps + 1,
            tuple(block for block, _ in self._blocks),
            tuple(settings_of(group) for group in self._optimizer.param_groups),
            self._norm,
            self._clip(),
        )
        states = states_for_blocks([state for _, state in self._blocks])
        if states:
            self._keeper.keep_random(step.number, states)
        snapshot = None
        if self._steps == 0 or self._schedule.due(self._steps):
            snapshot = _snapshot.take(self._parameters, self._model, self._optimizer)
            self._keeper.keep(self._steps, snapshot)
            self._keeper.give_up(self._schedule.keep(self._steps))
        if self._steps == 0 and snapshot is not None:
            check_first_step(self._replica, step, snapshot, self._parameters)
        self._keeper.add(step)
        self._stepping = True

    def _require_unedited(self) -> None:
        """Raises where something besides the recorded steps moved weights or moments."""
        if self._closing is None:
            return
        what = edited(self._closing, marks(self._parameters, self._optimizer))
        if what is not None:
            raise InvariantError(
                f"Something besides optimizer.step() changed {what} after step {self._steps} "
                "(clipped or normalised weights, averaged weights put back, a reset). A run is "
                "played again by its steps alone, so look-ahead would give values of another run. "
                "Call finish() before such an edit and record the rest as a run of its own, or "
                "make it part of the model, as a parametrization."
            )

    def _clip(self) -> float:
        """What the gradient was multiplied with since the last block."""
        norm, limit = gradient_norm(self._parameters), self._replica.task.clip_norm
        wrong = unexpected(self._norm, norm, limit)
        if wrong is not None:
            raise MisuseError(
                f"Step {self._steps + 1}: {wrong} Tell record(clip_norm=...) what you pass to "
                "clip_grad_norm_; put any other scaling into the loss and into losses()."
            )
        return norm / self._norm if self._norm else 1.0

    def _after_step(self, k: int) -> None:
        if self._stepping:
            self._stepping = False
            self._steps += 1
            self._blocks.clear()
            self._closing = marks(self._parameters, self._optimizer)

    def finish(self) -> Trajectory:
        """Ends the recording: the run, ready to be played again. May be called twice.

        Raises:
            MisuseError: no step was recorded.
            InvariantError: weights were edited after the last one.
        """
        if self._trajectory is None:
            if not self._steps:
                raise MisuseError("No optimizer step was recorded, so there is no run.")
            self._require_unedited()
            self._release()
            self._keeper.keep(
                self._steps, _snapshot.take(self._parameters, self._model, self._optimizer)
            )
            self._keeper.finish(
                {
                    "steps": self._steps,
                    "interval": self._schedule.interval,
                    "budget": self._budget,
                    "clip_norm": self._replica.task.clip_norm,
                    "modes": [list(mode) for mode in self._replica.modes],
                    "torch": torch.__version__,
                }
            )
            self._trajectory = Trajectory(self._keeper, self._replica)
        return self._trajectory
