"""How far look-ahead can be trusted on this run, without training again.

Values are first order in a removal. Two things make removal bend, and a third hides it; all can be
read off the recorded run:

- The loss's curvature. Its share is 1/2 delta_i^T H_V delta_i for sample i, with delta_i what its
  removal does to the last weights. With random signs xi, delta = sum_i xi_i delta_i costs one
  forward sweep, and E[delta^T H_V delta] = sum_i delta_i^T H_V delta_i, so that
  |1/2 E[delta^T H_V delta]| / sum_i |value_i| is the second order over the first, over all samples.
- Kinks. Units that switch jump, and no Hessian has jumps in it. How much values move when the mean
  effect of switching is counted in (`_kinks.py`) says how much switching there is: the median of
  |value_i with - value_i without| over the median of |value_i|.
- Rounding. A run of small steps moves each weight by few of its last digits, and so does a removal.
  The run is played again a few times from a start that is moved by half of the last digit: what
  that does to the loss, over the root mean square of the values, is what no method can predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from inrun.replay._folder import Ids
from inrun.replay._forward import perturbation
from inrun.replay._removal import Removal
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, curvature, losses_of


@dataclass(frozen=True)
class ErrorProxy:
    """How far from first order removal is on a run, and what that means for its values.

    Attributes:
        second_order: the loss's second order over its first; 0 where removal is linear.
        spread: its standard error, from the mixtures' differences.
        kinks: how much the values move when units that switch are counted in; 0 for models
            without kinks.
        rounding: how much the loss moves with the start's last digit, over the values.
    """

    second_order: float
    spread: float
    kinks: float
    rounding: float

    TRUST: ClassVar[float] = 0.01
    RANKING: ClassVar[float] = 0.2

    @property
    def size(self) -> float:
        """The three together, each a part of the first order."""
        return self.second_order + self.kinks + self.rounding

    @property
    def verdict(self) -> str:
        """'trust', 'trust the ranking only' or 'do not trust'."""
        if self.size < self.TRUST:
            return "trust"
        return "trust the ranking only" if self.size < self.RANKING else "do not trust"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: the second order is {self.second_order:.2%} of the first "
            f"(+- {self.spread:.2%}), kinks move values by {self.kinks:.2%}, and the last digits "
            f"of the start by {self.rounding:.2%}"
        )


def kink_share(without: Mapping[object, float], counted: Mapping[object, float]) -> float:
    """How much values move when kinks are counted in: medians, as single values may explode."""
    plain = np.array(list(without.values()))
    moved = np.abs(np.array([counted[who] for who in without]) - plain)
    size = float(np.median(np.abs(plain)))
    return float(np.median(moved)) / size if size else 0.0


def rounding(
    run: Trajectory, utility: Utility, values: Mapping[object, float], replays: int, seed: int
) -> float:
    """What the last digits of the start do to the loss, over the values."""
    replica, generator = run.replica, torch.Generator().manual_seed(seed)
    weights = torch.tensor(utility.weights, dtype=torch.float64)
    loss = float(losses_of(utility, run.finished()) @ weights)
    moved = []
    for _ in range(replays):
        replica.put(run.keeper.state(0))
        with torch.no_grad():
            for p in replica.parameters.values():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                noise = noise * (torch.finfo(p.dtype).eps / 2)
                p.copy_(p.double() * (1 + noise.to(p.device)))
        for step in run.steps:
            replica.play(step)
        moved.append(float(losses_of(utility, replica.model) @ weights) - loss)
    size = float(np.sqrt(np.mean(np.square(list(values.values())))))
    return float(np.sqrt(np.mean(np.square(moved)))) / size if size else float("inf")


def second_order(
    run: Trajectory,
    utility: Utility,
    removal: Removal,
    values: Mapping[object, float],
    mixtures: int,
    seed: int,
) -> tuple[float, float]:
    """The second order of removal over the first, and its standard error."""
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
        return float("inf"), 0.0
    spread = float(np.std(second, ddof=1) / np.sqrt(mixtures)) if mixtures > 1 else float("inf")
    return abs(float(np.mean(second))) / first, spread / first
