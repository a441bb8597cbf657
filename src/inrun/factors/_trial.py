"""Directions of low rank: Q_k ~ L_k R_k^T, so that a share is met by two thin products.

After preconditioning a validation gradient has few large singular values. A randomized range finder
(Halko, Martinsson, Tropp, 2011) reads Q twice:

    Y = Q start,  L = orth(Y),  R = Q^T L

and the next step starts from this step's R: the directions of two neighbouring steps nearly share
their range. Letters: K directions, M and N the two axes of a matrix parameter, r the rank.

What is remembered of a rank: how well it did where it was tried, and what it was tried on.

A rank is on trial until its contributions were held against the dense ones. Two numbers say how it
did, for each of K targets in that target's own units:

    own     mean square of what was wrong in a parameter's contributions, over that of themselves
    error   the same over the mean square of all parameters' contributions to the step, summed

and two say what it was tried on: the directions' energy |Q|^2, and what the rank misses of it,
|Q|^2 - |L^T Q|^2. Where either jumps the trial says nothing any more. B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST_RANK = 16  # and the first: thin products of 8 columns take as long
CHECK_EVERY = 16  # steps between comparisons with the dense contraction, on one sample
PATIENCE = 5  # comparisons before a rank that was not enough is tried again
MEMORY = 0.75  # of earlier comparisons in the running error: one sample tells little by itself
WARM_UP = 4  # steps that are dense: an optimizer's first directions are not like its later ones
JUMP = 4.0  # times as much energy, or as large a missed part of it, as when the rank was tried
LARGE = 1_500_000  # numbers that meet a thin matrix; fewer ones take less than the call does
IMAGES = 16  # of a convolution on one thread, from which on PyTorch asks oneDNN


class LowRank(NamedTuple):
    """K directions as products: left (K, M, r) with orthonormal columns, right (K, N, r)."""

    left: Tensor
    right: Tensor


def thin_product(rows_PM: Tensor, sides_MR: Tensor) -> Tensor:
    """Rows @ sides, of few columns, (P, R).

    On a CPU in single precision MKL's product of 16 columns takes two to three times as long as
    oneDNN's, which PyTorch only has as a convolution: here with windows of one place.
    """
    (P, M), R = rows_PM.shape, sides_MR.shape[1]
    large = P >= IMAGES and rows_PM.numel() >= LARGE and rows_PM.device.type == "cpu"
    if not large or rows_PM.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return rows_PM @ sides_MR
    rest = P % IMAGES
    images = rows_PM[: P - rest].reshape(IMAGES, -1, 1, M).permute(0, 3, 1, 2)
    met = F.conv2d(images, sides_MR.T.reshape(R, M, 1, 1)).permute(0, 2, 3, 1).reshape(-1, R)
    return torch.cat([met, rows_PM[P - rest :] @ sides_MR]) if rest else met


def thin_products(rows_KPM: Tensor, sides_KMR: Tensor) -> Tensor:
    """The same of each pair, (K, P, R)."""
    return torch.stack([thin_product(*pair) for pair in zip(rows_KPM, sides_KMR, strict=True)])


def factorize(Q_KMN: Tensor, start_KNr: Tensor | None, rank: int) -> LowRank:
    """The directions' best products within the range that a start shows.

    Args:
        Q_KMN: the directions.
        start_KNr: the right factors of nearby directions; None for random ones, with one more pass.
        rank: r, at most min(M, N).
    """
    if start_KNr is None:
        generator = torch.Generator(Q_KMN.device).manual_seed(0)
        shape = (Q_KMN.shape[0], Q_KMN.shape[2], rank)
        random = torch.randn(shape, generator=generator, device=Q_KMN.device, dtype=Q_KMN.dtype)
        start_KNr = Q_KMN.mT @ _orthonormal(Q_KMN @ random)
    left = _orthonormal(thin_products(Q_KMN, start_KNr))
    return LowRank(left, Q_KMN.mT @ left)


def _orthonormal(Y: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(Y).Q
    return basis


class Trial:
    """One parameter's rank, or that of one map of it.

    `waits`: how many more steps are dense without a trial. `trials`: how many more are dense and
    measured, of a fixed rank. The tensors are of the step under way: mean squares of contributions
    and of what was wrong in them (K,), energies and what was missed of them (K,).
    """

    def __init__(self, fixed_rank: int | None):
        self._fixed = fixed_rank
        self.rank, self.admitted = fixed_rank or LOWEST_RANK, False
        self.waits = 0 if fixed_rank else WARM_UP
        self.trials = WARM_UP if fixed_rank else 1
        self.right_KNr: Tensor | None = None
        self.own: list[float] = []
        self.error: list[float] = []
        self.tried_on: list[list[float]] = []
        self._patience = 0
        self.size: Tensor | None = None
        self.difference: Tensor | None = None
        self.seen: Tensor | None = None

    def numbers(self) -> dict[str, Any]:
        """Everything but the tensors; between two steps there is only one."""
        return {n: v for n, v in vars(self).items() if not isinstance(v, Tensor)}

    def take(self, numbers: Mapping[str, Any], right_KNr: Tensor | None) -> None:
        """Takes over what `numbers` gave, and the tensor."""
        if "own" not in numbers:  # from before trials were remembered: it is tried again
            numbers = {k: numbers[k] for k in ("rank", "waits")}
        vars(self).update(numbers)
        self.right_KNr = right_KNr

    @property
    def used(self) -> bool:
        """Whether values are those of the rank."""
        return self.admitted and not self.waits

    @property
    def measured(self) -> bool:
        """Whether there is a rank to speak of, and an error."""
        return not self.waits and (self.used or self._fixed is not None)

    def told(self) -> list[float]:
        """The error, a target; of a step that is not over, what was measured so far."""
        if self.difference is None or self.size is None:
            return self.error or [0.0]
        pairs = zip(self.difference.tolist(), self.size.tolist(), strict=True)
        return [d / s if s else 0.0 for d, s in pairs]

    def start(self, directions_K: Tensor) -> Tensor | None:
        """The basis of the step before, where it fits."""
        if self.right_KNr is not None:
            self.right_KNr = self.right_KNr.to(directions_K.device)  # it may come from a checkpoint
        right = self.right_KNr
        fits = right is not None and right.shape[0] == len(directions_K)
        return right if fits and right is not None and right.shape[2] == self.rank else None

    def see(self, directions_KMN: Tensor, right_KNr: Tensor) -> None:
        """Takes note of what the rank meets: directions and its product."""
        energy, met = (
            torch.linalg.vector_norm(t, dim=2).square().sum(1) for t in (directions_KMN, right_KNr)
        )
        self.seen, self.right_KNr = torch.stack([energy, (energy - met).clamp(min=0)]), right_KNr

    def jumped(self, tolerance: float, seen: Sequence[Sequence[float]]) -> bool:
        """Whether what is seen is another thing than what the rank was tried on."""
        if len(self.tried_on) != 2 or len(self.tried_on[0]) != len(seen[0]):
            return True
        for energy, missed, tried, missed_then in zip(*seen, *self.tried_on, strict=True):
            allowed = JUMP * missed_then / tried if tried else 0.0
            if energy > JUMP * tried or missed > (allowed + tolerance**2) * energy:
                return True
        return False

    def weigh(self, values: Sequence[Tensor]) -> None:
        """Takes note of this step's contributions, or of one of its blocks'."""
        self.size = _plus(self.size, mean_square(values))

    def compare(self, found: Sequence[Tensor], dense: Sequence[Tensor]) -> None:
        """Takes note of what was wrong in them, or in one sample's."""
        wrong = mean_square([a - b for a, b in zip(found, dense, strict=True)])
        self.difference = _plus(self.difference, wrong)

    def learn(
        self,
        difference: Sequence[float],
        size: Sequence[float],
        seen: list[list[float]],
        *,
        again: bool,
    ) -> None:
        """Judges a comparison, by mean squares per target; a comparison of nothing is none.

        `size` is of what `difference` is of, `seen` as it was compared; `again`: it was in use.
        """
        if not any(size):
            return
        now = [d / s if s else 1.0 for d, s in zip(difference, size, strict=True)]  # 1: unknown
        old = self.own if again and len(self.own) == len(now) else now
        self.own = [MEMORY * a + (1 - MEMORY) * b for a, b in zip(old, now, strict=True)]
        self._patience -= 1
        if self._fixed is None:
            self.admitted = True
        self.tried_on = seen

    def share(self, size: Sequence[float], whole: Sequence[float]) -> None:
        """How wrong the step's values are by it, from its own error and its part in them."""
        own = self.own or [1.0] * len(size)
        self.error = [o * s / w if w else 0.0 for o, s, w in zip(own, size, whole, strict=True)]

    def retry(self) -> None:
        """Puts the rank on trial again, basis and all."""
        self.admitted, self.trials = False, 1

    def give_up(self) -> None:
        """No rank that is worth its work suffices: dense for a while, then from the start."""
        self.rank, self.waits = self._fixed or LOWEST_RANK, self.waits or CHECK_EVERY
        self.retry()

    def double(self) -> None:
        """Puts twice the rank on trial."""
        self._patience = PATIENCE
        self._renew(2 * self.rank)

    def halve(self) -> None:
        """Puts half the rank on trial, unless it was not enough a short while ago."""
        if self._patience <= 0 and self.rank > LOWEST_RANK:
            self._renew(self.rank // 2)

    def end_step(self) -> None:
        """Forgets this step's numbers. A fixed rank is used after so many trials anyway."""
        if self._fixed is not None and self.difference is not None and not self.admitted:
            self.trials -= 1
            self.admitted = self.trials <= 0
        self.size = self.difference = self.seen = None
        self.waits = max(0, self.waits - 1)

    def _renew(self, rank: int) -> None:
        self.rank, self.right_KNr = rank, None
        self.retry()


def _plus(before: Tensor | None, now: Tensor | None) -> Tensor | None:
    return now if before is None else before if now is None else before + now


def mean_square(values: Sequence[Tensor]) -> Tensor | None:
    """(K,) over the samples of values (B, K); None where there are none."""
    flat = [v for v in values if v.numel()]
    if not flat:
        return None
    narrow = flat[0].device.type == "mps"  # it has no doubles
    return torch.cat(flat).to(torch.float32 if narrow else torch.float64).square().mean(0)


class Waiting(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> list[Tensor]:
        """Them, on the CPU."""


Reader = Callable[[Tensor], Waiting]
"""Sends a tensor to the host, for reading it when there is other work for the device."""
