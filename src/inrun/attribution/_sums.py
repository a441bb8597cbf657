"""A step's sums: what each parameter adds to the samples' values and to the books.

They stay on the parameters' device until the step is over, so that a GPU is waited for once.
Letters: B samples of a block, K targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inrun.attribution._plan import ParameterPlan
from inrun.capture import Block, Processes
from inrun.directions import Gradients, SampleDirection
from inrun.factors import Contraction, compute_dtype


class Sums:
    """Values (B, K) of each block, and the history's entries (K,).

    Args:
        samples: of each block.
        targets: K.
        processes: those that the step's samples are spread over.
    """

    def __init__(self, samples: Sequence[int], targets: int, processes: Processes):
        self._samples, self._K, self._processes = list(samples), targets, processes
        self._by_device: dict[torch.device, Tensor] = {}

    def add(
        self,
        name: str,
        plan: ParameterPlan,
        at: Gradients,
        blocks: Sequence[Block],
        contraction: Contraction,
    ) -> None:
        """What one parameter's samples, momentum and decay did."""
        gradient = plan.direction.gradient(at, plan.move).to(compute_dtype(plan.parameter))
        self._add_history(plan, plan.direction.history_gradient(at, gradient))
        factors = [block.factors.get(name, []) for block in blocks]
        if isinstance(plan.direction, SampleDirection) and (
            any(factors) or self._processes.size > 1
        ):
            self._add_sample_direction(plan, gradient, blocks, name)
            return
        if not any(factors):
            return
        Q = plan.slope.transposed(gradient, plan.share_scale)
        found = iter(contraction.contract(name, [f for part in factors for f in part], Q))
        for number, part in enumerate(factors):
            for _ in part:
                self._add(number, next(found))

    def _add_history(self, plan: ParameterPlan, along_K: Tensor) -> None:
        for row, displacement in enumerate(plan.history):
            if isinstance(displacement, Tensor):  # a number displaces nothing: it is 0
                flat_KP = along_K.reshape(self._K, -1)
                product = flat_KP @ displacement.reshape(-1).to(flat_KP.dtype)
                self._rows(product.device)[row] += product

    def _add_sample_direction(
        self, plan: ParameterPlan, gradient: Tensor, blocks: Sequence[Block], name: str
    ) -> None:
        """A direction that differs from sample to sample: over the whole step at once."""
        assert isinstance(plan.direction, SampleDirection)
        shares = [
            sum(
                (factor.materialize(gradient.dtype) for factor in block.factors.get(name, [])),
                start=gradient.new_zeros(block.samples, *gradient.shape[1:]),
            )
            for block in blocks
        ]
        everyones, begin = self._processes.rows(torch.cat(shares) * plan.share_scale)
        values = plan.direction.values(plan.move, everyones, gradient)
        own = values[begin : begin + sum(self._samples)]
        for number, part in enumerate(torch.split(own, self._samples)):
            self._add(number, part)

    def add_streamed(self, blocks: Sequence[Block], scale: float) -> None:
        """What was contracted inside the backward pass."""
        for number, block in enumerate(blocks):
            if block.values_BK is not None:
                self._add(number, block.values_BK * scale)

    def fetch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values of all blocks' samples (N, K), momentum (K,) and decay (K,), float64."""
        total = np.zeros((2 + sum(self._samples), self._K))
        for rows in self._by_device.values():
            total += rows.cpu().numpy()
        return total[2:], total[0], total[1]

    def _add(self, block: int, values_BK: Tensor) -> None:
        begin = 2 + sum(self._samples[:block])
        self._rows(values_BK.device)[begin : begin + len(values_BK)] += values_BK

    def _rows(self, device: torch.device) -> Tensor:
        """(2 + N, K): momentum, decay, then the samples."""
        if device not in self._by_device:
            shape = (2 + sum(self._samples), self._K)
            dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no doubles
            self._by_device[device] = torch.zeros(shape, dtype=dtype, device=device)
        return self._by_device[device]
