"""A batch of candidates, by their gradient shares: contracted, summed, put together to a step.

With c_i candidate i's share of the loop's gradient, f_i its part of the block's mean and S the
chosen ones, training on S alone has the gradient

    g_S = sum_S c_i / phi_S,   phi_S = sum_S f_i        (phi_S = 1 where the loss is a sum)

which is a weighted sum of shares that are at hand: no second backward pass. While places are still
free, they count as filled by the average of those that wait:

    g_S+ = (sum_S c_i + e * sum_rest c_i) / phi_S+,  phi_S+ = sum_S f_i + e * sum_rest f_i

with e the free places over those that wait. Letters: N candidates, k places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inrun.capture import Block
from inrun.factors import compute_dtype, cost
from inrun.replay import Ids

Gradient = dict[str, Tensor]


class Filled(NamedTuple):
    """What g_S+ multiplies each share with, `weights` (N,) float64, and phi_S+, `part`."""

    weights: Tensor
    part: float


class Candidates:
    """The rows of one block.

    By name of the trained parameters: `total`, the block's gradient, and `before`, what the step's
    earlier blocks left. `shares_of_mean` (N,) float64 is f, adding up to 1; None where the loss is
    a sum.
    """

    def __init__(
        self,
        ids: Ids,
        block: Block,
        parameters: Mapping[str, Tensor],
        total: Gradient,
        before: Gradient,
        shares_of_mean: Tensor | None,
    ):
        self.ids, self.total = ids, total
        self._block, self._parameters, self._before = block, parameters, before
        self.shares_of_mean = self._f = shares_of_mean
        self._each_part: list[float] = [] if shares_of_mean is None else shares_of_mean.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def trained_on(self, rows: Sequence[int]) -> Gradient:
        """g_S on top of what earlier blocks left: the gradient of training on these rows."""
        gradient = self.total
        if len(rows) < len(self):
            part = self._mean_part(rows)
            gradient = {name: g / part for name, g in self._summed(rows).items()}
        return self._on_top(gradient)

    def expected(self, rows: Sequence[int], places: int) -> Gradient:
        """g_S+ on top of what earlier blocks left."""
        chosen, (fill, part) = self._summed(rows), self._fill(rows, places)
        gradient = {
            name: (chosen[name] + fill * (whole - chosen[name])) / part
            for name, whole in self.total.items()
        }
        return self._on_top(gradient)

    def filled(self, rows: Sequence[int], places: int) -> Filled:
        """Who fills the places with S chosen, the free ones as in g_S+."""
        fill, part = self._fill(rows, places)
        counted = torch.full((len(self),), fill, dtype=torch.float64)
        counted[list(rows)] = 1.0
        return Filled(counted / part, part)

    def worth(self, slopes: Tensor, filled: Filled) -> Tensor:
        """What a place for each candidate takes off the loss, (N,) float64 on the CPU.

        It is minus the loss's derivative in the candidate's weight, the mean being taken over it
        too: above 0 is better than the average of what the places hold by now. `slopes` (N,) are
        the later loss's derivatives along each share.
        """
        if self._f is None:
            return -slopes
        return (self._f * (filled.weights @ slopes) - slopes) / filled.part

    def contracted(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Shares with directions, (K, *shape) per parameter: (N, K) float64 on the CPU."""
        count = len(next(iter(directions.values())))
        found = torch.zeros(len(self), count, dtype=torch.float64)
        for name, factors in self._block.factors.items():
            if name not in directions:
                continue
            p = directions[name].to(compute_dtype(self._parameters[name]))
            for factor in factors:
                found += factor.contract(p).double().cpu()
        return found

    def built(self) -> Iterator[Gradient]:
        """The shares themselves, (n, *shape) per parameter, a few candidates at a time."""
        sizes = [self._parameters[name].numel() for name in self._block.factors]
        size = max(1, cost.samples_per_block(sum(sizes), 8))
        for rows in torch.arange(len(self)).split(size):
            yield {name: self._built(name, rows) for name in self._block.factors}

    def _built(self, name: str, rows: Tensor) -> Tensor:
        p = self._parameters[name]
        dtype, factors = compute_dtype(p), self._block.factors[name]
        if len(rows) < len(self):
            factors = [factor.select(rows.to(p.device)) for factor in factors]
        parts = [factor.materialize(dtype) for factor in factors]
        return sum(parts[1:], start=parts[0])

    def _summed(self, rows: Sequence[int]) -> Gradient:
        """The sum of these rows' shares, for every parameter that has a gradient."""
        gradient = {name: torch.zeros_like(g) for name, g in self.total.items()}
        if not len(rows):
            return gradient
        for name, factors in self._block.factors.items():
            if name in gradient:
                like, dtype = gradient[name], compute_dtype(self._parameters[name])
                chosen = torch.tensor(rows, device=like.device)
                parts = [factor.select(chosen).total(dtype) for factor in factors]
                gradient[name] = sum(parts[1:], start=parts[0]).reshape(like.shape).to(like.dtype)
        return gradient

    def _mean_part(self, rows: Sequence[int]) -> float:
        """phi_S."""
        return 1.0 if self._f is None else sum(self._each_part[row] for row in rows)

    def _fill(self, rows: Sequence[int], places: int) -> tuple[float, float]:
        """The weight e of those that wait, and phi_S+."""
        fill = (places - len(rows)) / (len(self) - len(rows))
        chosen = self._mean_part(rows)
        return fill, 1.0 if self._f is None else chosen + fill * (1 - chosen)

    def _on_top(self, gradient: Gradient) -> Gradient:
        """The block's part added to what was there."""
        found = dict(self._before)
        for name, g in gradient.items():
            found[name] = found[name] + g if name in found else g
        return found
