"""A recorded run: its states forward and backward, each checked against the record.

Backward, a segment between two kept states is played again from its first one. Within it at most
`copies` states are held; a longer segment is cut, and its parts are played again in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inrun.errors import MisuseError, StoreError
from inrun.replay._agreement import check_norm, check_state
from inrun.replay._folder import MANIFEST, Folder, Keeper, Step
from inrun.replay._replica import Fetch, Losses, Replica, Task
from inrun.replay._snapshot import Snapshot, stops, undisturbed_random

COPIES = 16


class Trajectory:
    """What `recorder.finish()` and `inrun.load` return of a recorded run.

    Attributes:
        steps: the recorded steps.
        kept: numbers of the states on disk; state n is the one after n steps.
    """

    def __init__(self, keeper: Keeper, replica: Replica):
        self.keeper, self.replica = keeper, replica
        self.steps: list[Step] = keeper.steps()
        self.kept = keeper.kept()
        if not self.kept or self.kept[0] != 0 or self.kept[-1] != len(self.steps):
            raise StoreError(
                f"{keeper!r} keeps the states {self.kept[:1]} to {self.kept[-1:]} of a run of "
                f"{len(self.steps)} steps; it needs the first and the last. Record it again."
            )

    def __repr__(self) -> str:
        return f"Trajectory({self.keeper!r}, {len(self.steps)} steps, {len(self.kept)} states kept)"

    @property
    def bytes_on_disk(self) -> int:
        """What the recording takes on disk."""
        return self.keeper.size()

    def sample_ids(self) -> list[int] | list[str]:
        """Every id once, in the order of their first visits."""
        seen = dict.fromkeys(i for s in self.steps for block in s.blocks for i in block.ids)
        return list(seen)  # type: ignore[return-value]  # all of one kind

    def unvisited(self, ids: Collection[object]) -> str | None:
        """What of these it never visited, in words; None where it visited all."""
        strangers = set(ids) - set(self.sample_ids())
        if strangers:
            return f"the sample {min(map(repr, strangers))}"
        return None if ids else "no sample at all"

    def check(self) -> None:
        """Plays the whole run again.

        Raises:
            InvariantError: the replay does not do what the run did; says what is not deterministic.
        """
        for first, last in zip(self.kept, self.kept[1:], strict=False):
            self._play(self.keeper.state(first), first, last, [])

    def retrain(
        self, without: int | str | Collection[int | str], *, renormalise: bool = True
    ) -> nn.Module:
        """The same training without some samples: the model as it then ends, until the next replay.

        Same start, same order, same random numbers, clipping anew. It sets out from the last kept
        state before the first visit of any of them. A block of whose samples none remains gives no
        gradient.

        Args:
            without: a sample's id, or a collection of ids.
            renormalise: the loss is the mean over those that remain; else they keep their weight.

        Raises:
            MisuseError: none is named, or one was never visited.
        """
        left_out = frozenset([without] if isinstance(without, (int, str)) else without)
        what = self.unvisited(left_out)
        if what is not None:
            raise MisuseError(f"The run never visited {what}, which it is to be trained without.")
        touched = (
            number
            for number, step in enumerate(self.steps)
            if any(i in left_out for block in step.blocks for i in block.ids)
        )
        end = len(self.steps)
        return self.stretch(next(touched) + 1, end, left_out, renormalise=renormalise)

    def stretch(
        self, first: int, last: int, without: Collection[object] = (), *, renormalise: bool = True
    ) -> nn.Module:
        """The model after step `last`, some steps of which were played without some samples.

        Args:
            first: the first step, counted from 1, from which they are left out.
            last: the last one that is played; first - 1 plays none of them.
            without: ids of the samples.
            renormalise: see `retrain`.

        Raises:
            MisuseError: no such steps were recorded.
        """
        if not 1 <= first <= last + 1 <= len(self.steps) + 1:
            raise MisuseError(
                f"Steps {first} to {last} were not recorded: the recording has {len(self.steps)}."
            )
        begin = max(state for state in self.kept if state < first)
        self.replica.put(self.keeper.state(begin))
        for number in range(begin, last):
            self.replica.play(
                self.steps[number], without if number + 1 >= first else (), renormalise
            )
        return self.replica.model

    def losses(self) -> dict[int | str, float]:
        """Each sample's own loss at the run's last state, in the mode that it was trained in.

        It is the row's term over the row's part of the mean, of the sample's last visit.
        """
        self.finished()
        found: dict[int | str, float] = {}
        with undisturbed_random(self.replica.model), torch.no_grad():
            for step in self.steps:
                for number, block in enumerate(step.blocks):
                    self.replica.begin_block(step, block, number)
                    terms, batch = self.replica.task.terms(self.replica.model, block.ids)
                    shares = self.replica.task.shares_of_mean(batch, len(block.ids))
                    rows = terms.double().cpu() / shares * len(step.blocks)
                    found |= dict(zip(block.ids, rows.tolist(), strict=True))
        return found

    def finished(self) -> nn.Module:
        """The model as the run ended, until the next replay."""
        self.replica.put(self.keeper.state(self.kept[-1]))
        return self.replica.model

    def forward(self) -> Iterator[Step]:
        """Puts the replica into each state before a step, in order, to be looked at."""
        for first, last in zip(self.kept, self.kept[1:], strict=False):
            snapshot = self.keeper.state(first)
            for number in range(first, last):
                self.replica.put(snapshot, lend=True)
                step = self.steps[number]
                self.replica.set_groups(step)
                yield step
                if number + 1 < last:
                    self.replica.put(snapshot)
                    check_norm(self.replica, step, self.replica.play(step))
                    snapshot = self.replica.take()

    def backward(self, copies: int = COPIES) -> Iterator[int]:
        """Puts the replica into each state, from the last to the first, and says its number.

        It is there to be looked at: its optimizer must not step.

        Args:
            copies: states held at a time within a segment, at least 2.

        Raises:
            InvariantError: the replay does not do what the run did; says what is not deterministic.
        """
        if copies < 2:
            raise MisuseError(f"copies is {copies}; a segment needs at least 2 states in memory.")
        self.replica.put(self.keeper.state(self.kept[-1]), lend=True)
        yield self.kept[-1]
        for first, last in reversed(list(zip(self.kept, self.kept[1:], strict=False))):
            for number, snapshot in self._segment(self.keeper.state(first), first, last, copies):
                self.replica.put(snapshot, lend=True)
                yield number

    def _segment(
        self, start: Snapshot, first: int, last: int, copies: int
    ) -> Iterator[tuple[int, Snapshot]]:
        """States last - 1 to first."""
        if last - first == 1:
            yield first, start
            return
        held = stops(first, last, copies)
        snapshots = self._play(start, first, last, held)
        for number in reversed(held):
            end = min(last, number + held[1] - held[0]) if len(held) > 1 else last
            yield from self._segment(snapshots.pop(number), number, end, copies)

    def _play(self, start: Snapshot, first: int, last: int, held: list[int]) -> dict[int, Snapshot]:
        """Plays the steps from one state to another; returns the states to hold on the way."""
        self.replica.put(start)
        found = {first: start}
        end = last if last in self.kept else max(held)  # an inner part was checked with its whole
        for number in range(first, end):
            step = self.steps[number]
            check_norm(self.replica, step, self.replica.play(step))
            if number + 1 in held:
                found[number + 1] = self.replica.take()
        if last in self.kept:
            check_state(self.replica, last, self.keeper.state(last), start)
        return found


class Replayable(NamedTuple):
    """What it takes to play a recorded run again, for `inrun.load`, and to ask it something.

    Attributes:
        model: built as it was then; frozen parameters must have the values that they had.
        optimizer: built as it was then, with the same groups.
        losses: see `inrun.record`.
        fetch: see `inrun.record`.
        query_loss: `query_loss(model, row)` is the loss of a query, `row` a mapping such as
            {'text': ...}.
        weights: see `inrun.record`.
        token_losses: `token_losses(model, batch)` gives (B, T) terms that add up over T to
            `losses`, for values per token.
        tokens: `tokens(ids)` gives the T tokens' strings of each row.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Losses
    fetch: Fetch
    query_loss: Losses | None = None
    weights: Callable[[Any], Tensor] | None = None
    token_losses: Losses | None = None
    tokens: Callable[[Any], list[list[str]]] | None = None


def is_recording(folder: Path) -> bool:
    return os.path.isfile(folder / MANIFEST)


def open_trajectory(folder: str | os.PathLike[str], by: Replayable) -> Trajectory:
    """A recorded run, in another process."""
    place = Folder(Path(folder))
    manifest = place.manifest()
    task = Task(by.losses, by.fetch, manifest["clip_norm"], by.weights)
    modes = [tuple(mode) for mode in manifest["modes"]]
    return Trajectory(place, Replica(by.model, by.optimizer, task, place, modes))
