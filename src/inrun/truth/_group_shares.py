"""What an audit's coalitions are made of: gradients of random groups of a step's samples.

While a block runs the captured shares are summed over the groups. At its end samples' own gradients
take their place where they can be had (`_own_gradients`): a truth that is made of what it judges
would not see a wrong owner.

Letters: G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from inrun.capture import Block, Capture
from inrun.distributed import Processes
from inrun.factors import Factor, compute_dtype
from inrun.truth._audit_utility import trained_labels
from inrun.truth._own_gradients import CHECKED, own_gradients


class GroupShares:
    """Sums of shares over groups, while factors come in."""

    def __init__(
        self,
        trained: Mapping[str, Tensor],
        groups: int,
        rng: np.random.Generator,
        processes: Processes,
    ):
        self._trained, self._groups, self._rng = trained, groups, rng
        self._processes = processes
        self._block = torch.empty(0, dtype=torch.long)
        self._labels: list[Tensor] = []
        self._now: dict[str, Tensor] = {}  # of the present block
        self._off = self._size = 0.0  # squared: own gradients less captured shares, captured shares
        self._told: dict[str, None] = {}
        self._trained_labels: Counter[int] = Counter()
        self._no_ones: list[Mapping[str, Tensor]] = []  # gradients of no sample in the step
        self.sums: dict[str, Tensor] = {}

    def begin_block(self, samples: int) -> None:
        """Draws the groups of a block's samples, going round so that groups stay alike in size."""
        before = sum(len(labels) for labels in self._labels) + samples * self._processes.rank
        turn = torch.arange(before, before + samples) % self._groups
        self._block = turn[torch.from_numpy(self._rng.permutation(samples))]
        self._labels.append(self._block)

    def add(self, name: str, factor: Factor) -> None:
        p = self._trained[name]
        dtype = compute_dtype(p)
        if name not in self._now:
            self._now[name] = torch.zeros(self._groups, *p.shape, dtype=dtype, device=p.device)
        for group in range(self._groups):
            members = (self._block == group).nonzero().flatten().to(p.device)
            if len(members):
                self._now[name][group] += factor.select(members).total(dtype)

    def end_block(self, capture: Capture, block: Block) -> None:
        """Puts samples' own gradients in the place of the shares of the block that has ended."""
        for name in capture.check.excluded:  # gaps as a whole, which act in every coalition
            self._now.pop(name, None)
            self.sums.pop(name, None)
        own, owners = own_gradients(capture, block.calls, self._block, self._groups, self._now)
        self._told[owners] = None
        self._trained_labels += trained_labels(block.calls)
        for name, captured in self._now.items():
            sums = own.get(name, captured)
            if name in own:
                self._off += float((sums - captured).double().square().sum())
                self._size += float(captured.double().square().sum())
            before = self.sums.get(name)
            self.sums[name] = sums if before is None else before + sums
        self._now = {}

    @property
    def owners(self) -> str:
        """Whether the sums are of samples' own gradients: 'checked', or why not."""
        told = {
            text: None for texts in self._processes.gathered(list(self._told)) for text in texts
        }
        return next((text for text in told if text != CHECKED), CHECKED)

    @property
    def share_error(self) -> float | None:
        """How far captured shares are from samples' own gradients; None where not compared."""
        parts = self._processes.gathered((self._off, self._size))
        off, size = sum(part[0] for part in parts), sum(part[1] for part in parts)
        return float((off / size) ** 0.5) if size else None

    def unjudged(self, judging: set[int] | None) -> float | None:
        """The share of everyone's rows whose label no validation row has; None: unknown."""
        counts = sum(self._processes.gathered(self._trained_labels), Counter[int]())
        if not judging or not counts or min(judging) < 0:
            return None
        return sum(n for label, n in counts.items() if label not in judging) / counts.total()

    @property
    def labels(self) -> np.ndarray:
        """The group of each sample of this process, in the step's order."""
        return torch.cat(self._labels).numpy()

    def unattributed(self, gradients: Mapping[str, Tensor]) -> None:
        """Gradients that are no sample's came into the step."""
        self._no_ones.append(dict(gradients))

    def consumed(self, players: int, scale: Callable[[str], Tensor | float]) -> dict[str, Tensor]:
        """The groups' shares times `scale(name)`, and last the gradients that are no sample's.

        Those are a player as the past is one: samples' values come of the path on which all of the
        gradient comes in together.
        """
        shares = {name: sums[:players] * scale(name) for name, sums in self._of_everyone().items()}
        names = [name for gradients in self._no_ones for name in gradients]
        for name in dict.fromkeys([*shares, *names]) if names else ():
            own = [gradients[name] for gradients in self._no_ones if name in gradients]
            sums = shares.get(name)
            if sums is None:
                sums = own[0].new_zeros(players, *own[0].shape)
            last = torch.zeros_like(sums[:1])
            if own:
                everyones = self._processes.mean(torch.stack(own).sum(0)) * self._processes.size
                last[0] = everyones * scale(name)
            shares[name] = torch.cat([sums, last])
        return shares

    def _of_everyone(self) -> dict[str, Tensor]:
        """Sums over the groups' samples in all processes, in units of the mean gradient's."""
        if self._processes.size == 1:
            return self.sums
        seen = {name for names in self._processes.gathered(list(self.sums)) for name in names}
        for name in self._trained:  # in an order that is everyone's
            if name in seen:
                p = self._trained[name]
                own = self.sums.get(name)
                if own is None:
                    shape = (self._groups, *p.shape)
                    own = torch.zeros(shape, dtype=compute_dtype(p), device=p.device)
                self.sums[name] = self._processes.mean(own) * self._processes.size
        return self.sums
