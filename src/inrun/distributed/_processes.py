"""Several processes that train one model: each sees its own samples, all see the same gradient.

With DistributedDataParallel the consumed gradient is the mean over W processes of what each one's
samples sum to, so a sample's share in it is 1 / W of what its own process shows. Directions are
formed from the reduced gradient and are the same everywhere; each process contracts them with its
own samples, and values are gathered. Letters: W processes, N samples, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from inrun.errors import MisuseError, NotSupportedError

PLACES = (
    "the beginning of a block",
    "the end of a block",
    "a scored optimizer step",
    "an unscored optimizer step",
    "no optimizer step",
)
"""Where processes meet; the last is one that a gradient scaler skips."""


class Processes:
    """One process, which is alone; `Several` are more, and every call is made by all of them."""

    size: int = 1
    rank: int = 0

    def reducing(self) -> bool:
        """Whether a backward pass that begins now averages gradients (no `no_sync`)."""
        return True

    def require_together(self) -> None:
        """Raises NotSupportedError under `Join`, where a process may stop before the others."""

    def require_alike(self, place: str) -> None:
        """Raises where the processes have come to different `PLACES`, before they wait for ever.

        The MisuseError is said in every process.
        """

    def meet(self, failed: Exception | None = None) -> None:
        """Raises where a process failed in what all of them are at; see `agreed`.

        `failed` is what was raised in this one; of another process it is a MisuseError, and nobody
        waits for it.
        """
        if failed is not None:
            raise failed

    def apart(self) -> Processes:
        """The same processes over a channel of their own, for calls from inside a backward pass.

        There the model's wrapper reduces gradients at the same time. The first call is made by all
        of them at once.
        """
        return self

    def mean(self, t: Tensor) -> Tensor:
        """The mean over processes."""
        return t

    def all(self, holds: Sequence[bool]) -> list[bool]:
        """Which of these hold in every process."""
        return list(holds)

    def gathered(self, rows: Any) -> list[Any]:
        """Every process's object, by rank."""
        return [rows]

    def rows(self, t: Tensor) -> tuple[Tensor, int]:
        """Every process's rows one after the other, and where this one's begin."""
        return t, 0


class Several(Processes):
    """The processes of a `torch.distributed` group; each call is one collective of all of them.

    `reducing`: see `Processes.reducing`. `joined`: whether the model's wrapper trains under
    `torch.distributed.algorithms.Join` now.
    """

    def __init__(
        self,
        group: Any = None,
        reducing: Callable[[], bool] | None = None,
        joined: Callable[[], bool] | None = None,
    ):
        self._group, self._reducing, self._joined = group, reducing, joined
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        backend = dist.get_backend(group)
        self._device = torch.device("cuda" if "nccl" in backend else "cpu")
        self._apart: Several | None = None

    def reducing(self) -> bool:
        return self._reducing is None or self._reducing()

    def require_together(self) -> None:
        if self._joined is not None and self._joined():
            raise NotSupportedError(
                "The model trains under Join, where a process that has run out of batches takes no "
                "more steps: its weights fall behind, and validation gradients and values with "
                "them. Leave Join out and let such a process go on with empty batches "
                "(attribution.batch([]) around a forward and backward pass of no rows), or drop "
                "the last batches (DistributedSampler(drop_last=True))."
            )

    def require_alike(self, place: str) -> None:
        code = PLACES.index(place)
        spread = torch.tensor([code, -code], dtype=torch.int32, device=self._device)
        dist.all_reduce(spread, dist.ReduceOp.MAX, group=self._group)
        last, first = (abs(number) for number in spread.tolist())
        if last != first:
            elsewhere = PLACES[last if last != code else first]
            raise MisuseError(
                f"This process (number {self.rank} of {self.size}) has come to {place}, and "
                f"another one to {elsewhere}. Every process must take the same steps with as many "
                "attribution.batch(ids) blocks that reduce gradients. One that has run out of "
                "samples opens its block with no ids and runs forward and backward on no rows; or "
                "drop the last batches (DistributedSampler(drop_last=True))."
            )

    def meet(self, failed: Exception | None = None) -> None:
        (fine,) = self.all([failed is None])
        if fine:
            return
        reasons = self.gathered("" if failed is None else f"{type(failed).__name__}: {failed}")
        rank = next(rank for rank, reason in enumerate(reasons) if reason)
        error = failed or MisuseError(
            f"This failed in process {rank} of {self.size}, and no process goes on alone. There "
            f"it said: {reasons[rank]}"
        )
        vars(error)[_MET] = True  # all have said it: nobody is to meet once more for it
        raise error

    def apart(self) -> Processes:
        if self._apart is None:
            ranks = dist.get_process_group_ranks(self._group or dist.group.WORLD)
            some = len(ranks) < dist.get_world_size()
            self._apart = Several(dist.new_group(ranks, use_local_synchronization=some))
        return self._apart

    def mean(self, t: Tensor) -> Tensor:
        reduced = t.to(self._device, copy=True).contiguous()
        dist.all_reduce(reduced, group=self._group)
        return (reduced / self.size).to(t.device)

    def all(self, holds: Sequence[bool]) -> list[bool]:
        flags = torch.tensor(list(holds), dtype=torch.int32, device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MIN, group=self._group)
        return [bool(flag) for flag in flags.tolist()]

    def gathered(self, rows: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, rows, group=self._group)
        return found

    def rows(self, t: Tensor) -> tuple[Tensor, int]:
        counts = self.gathered(len(t))
        most = max(counts)
        padded = t.new_zeros(most, *t.shape[1:], device=self._device)
        padded[: len(t)] = t
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded, group=self._group)
        joined = torch.cat([part[:n] for part, n in zip(found, counts, strict=True)])
        return joined.to(t.device), sum(counts[: self.rank])


Result = TypeVar("Result")
_MET = "__inrun_met__"  # on an exception, whose object may come through several `agreed`


def agreed(processes: Processes, work: Callable[[], Result]) -> Result:
    """What each process does for itself before it meets the others again.

    In between it makes no calls to the others, but where all `meet` before each of them, as within
    `meeting`.

    Raises:
        MisuseError: it failed in another process, which is not to be waited for.
        Exception: whatever it raised in this one.
    """
    try:
        done = work()
    except Exception as error:
        if _MET not in vars(error):
            processes.meet(error)
        raise
    processes.meet()
    return done


def gathered_step(
    processes: Processes, ids: Sequence[Any], values_NK: np.ndarray
) -> tuple[list[Any], np.ndarray]:
    """Ids and values of all processes' samples, by rank."""
    if processes.size == 1:
        return list(ids), values_NK
    parts = processes.gathered((list(ids), values_NK))
    return [i for part, _ in parts for i in part], np.concatenate([values for _, values in parts])
