"""How far look-ahead can be trusted on this run, without training again.

Values are first order. The next order's share in the validation loss itself is 1/2 delta_i^T H_V
delta_i for sample i, with delta_i what its removal does to the last weights. With random signs xi,
delta = sum_i xi_i delta_i costs one forward sweep, and

    E[delta^T H_V delta] = sum_i delta_i^T H_V delta_i

so that  proxy = |1/2 E[delta^T H_V delta]| / sum_i |value_i|  is the second order over the first,
summed over all samples of the run. It sees the curvature of the loss, not the jumps at kinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from inrun.replay._folder import Ids
from inrun.replay._forward import perturbation
from inrun.replay._removal import Removal
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, curvature


@dataclass(frozen=True)
class ErrorProxy:
    """The second order over the first, and what that means.

    Attributes:
        ratio: the proxy; 0 where removal is linear.
        spread: its standard error, from the mixtures' differences.
    """

    ratio: float
    spread: float

    RANKING: ClassVar[float] = 2e-3
    NOTHING: ClassVar[float] = 2e-2

    @property
    def verdict(self) -> str:
        """'trust', 'trust the ranking only' or 'do not trust'."""
        if self.ratio < self.RANKING:
            return "trust"
        return "trust the ranking only" if self.ratio < self.NOTHING else "do not trust"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: the second order is {self.ratio:.2%} of the first "
            f"(+- {self.spread:.2%})"
        )


def error_proxy(
    run: Trajectory,
    utility: Utility,
    removal: Removal,
    values: dict[object, float],
    mixtures: int,
    seed: int,
) -> ErrorProxy:
    """See `Lookahead.error_proxy`."""
    ids = run.sample_ids()
    place = {who: number for number, who in enumerate(ids)}
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (len(ids), mixtures), generator=generator).double() * 2 - 1

    def mixture(names: Ids) -> torch.Tensor:
        return signs[[place[name] for name in names]]

    delta = perturbation(run, mixture, removal)
    model = run.finished()
    weights = torch.tensor(utility.weights, dtype=torch.float64)
    second = []
    for k in range(mixtures):
        along = {name: part[k] for name, part in delta.items()}
        curved = curvature(utility, model, run.replica.parameters, along)
        forms = [(curved[n] * d).flatten(1).sum(1).double().cpu() for n, d in along.items()]
        second.append(float(torch.stack(forms).sum(0) @ weights) / 2)
    first = sum(abs(value) for value in values.values())
    if first == 0:
        return ErrorProxy(float("inf"), 0.0)
    spread = float(np.std(second, ddof=1) / np.sqrt(mixtures)) if mixtures > 1 else float("inf")
    return ErrorProxy(abs(float(np.mean(second))) / first, spread / first)
