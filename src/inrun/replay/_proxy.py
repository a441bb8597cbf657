"""How far look-ahead can be trusted on this run, without training again.

Values are first order in a removal. Two things make removal bend, and a third hides it; all can be
read off the recorded run:

- The loss's curvature. Its share is 1/2 delta_i^T H_V delta_i for sample i, with delta_i what its
  removal does to the last weights. With random signs xi, delta = sum_i xi_i delta_i costs one sweep
  forward (each step's derivative pushed, with the training loss's curvature), and
  E[delta^T H_V delta] = sum_i delta_i^T H_V delta_i, so that |1/2 E[delta^T H_V delta]| over
  sum_i |value_i| is the second order over the first. First order can explode, where an element's
  second moment is next to nothing, and then does so for the rows of that very step. So steps are
  split into groups, each with a mixture of its own rows, carried side by side; the groups' median
  is taken.
- Kinks. Units that switch jump, and no Hessian has jumps in it. How much values move when the mean
  effect of switching is counted in (`_gradient.py`) says how much switching there is: the median of
  |value_i with - value_i without| over the median of |value_i|.
- Rounding. A run of small steps moves each weight by few of its last digits, and so does a removal.
  The run is played again a few times from a start that is moved by half of the last digit: what
  that does to the loss, over the median of |value_i|, is what no method can predict.

Letters: B rows of a block, K mixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from inrun.optim import as_rows
from inrun.replay._carried import Carried, alike
from inrun.replay._folder import Ids, Step
from inrun.replay._gradient import StepGradient, add_up, pulled_back
from inrun.replay._removal import Removal
from inrun.replay._trajectory import Trajectory
from inrun.utility import Utility, curvature, losses_of

# a median's standard error is 1.2533 sigma / sqrt(n), and sigma 1.4826 median absolute deviations
MAD_TO_ERROR = 1.2533 * 1.4826


Mixture = Callable[[Ids], Tensor]


@dataclass(frozen=True)
class ErrorProxy:
    """How far from first order removal is on a run, and what that means for its values.

    Attributes:
        second_order: the loss's second order over its first; 0 where removal is linear.
        spread: its standard error, from the groups' differences.
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
    moved = np.abs([counted[who] - value for who, value in without.items()])
    size = median_size(without)
    return float(np.median(moved)) / size if size else 0.0


def median_size(values: Mapping[object, float]) -> float:
    """Median of |value_i|; a few that explode do not move it."""
    return float(np.median(np.abs(list(values.values()))))


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
    size = median_size(values)
    return float(np.sqrt(np.mean(np.square(moved)))) / size if size else float("inf")


def second_order(
    run: Trajectory,
    utility: Utility,
    removal: Removal,
    values: Mapping[object, float],
    groups: int,
    mixtures: int,
    seed: int,
) -> tuple[float, float]:
    """The second order of removal over the first, and its standard error.

    Each sample belongs to its first step's group, and there are `mixtures` with random signs per
    group.
    """
    group_of, count = _split(run, groups, seed)
    ids = list(group_of)
    place = {who: number for number, who in enumerate(ids)}
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (len(ids), mixtures), generator=generator).double() * 2 - 1
    belongs = torch.nn.functional.one_hot(torch.tensor(list(group_of.values())), count)
    columns = (belongs.unsqueeze(2) * signs.unsqueeze(1)).flatten(1)

    def mixture(names: Ids) -> Tensor:
        return columns[[place[name] for name in names]]

    delta = perturbation(run, mixture, removal)
    model = run.finished()
    weights = torch.tensor(utility.weights, dtype=torch.float64)
    second = []
    for k in range(count * mixtures):
        along = {name: part[k] for name, part in delta.items()}
        curved = curvature(utility, model, run.replica.parameters, along)
        forms = [as_rows(curved[n] * d).sum(1).double().cpu() for n, d in along.items()]
        second.append(float(torch.stack(forms).sum(0) @ weights) / 2)
    first = np.bincount(list(group_of.values()), np.abs([values[who] for who in ids]), count)
    sizes = np.abs(np.reshape(second, (count, mixtures)).mean(1))
    ratios = np.divide(sizes, first, where=first > 0, out=np.full(count, np.inf))
    middle = float(np.median(ratios))
    if not np.isfinite(middle):
        return float("inf"), 0.0
    apart = MAD_TO_ERROR * float(np.median(np.abs(ratios - middle)))
    return middle, apart / count**0.5 if count > 1 else float("inf")


def _split(run: Trajectory, groups: int, seed: int) -> tuple[dict[int | str, int], int]:
    """Each sample's group, that of its first step; and how many groups there are."""
    first: dict[int | str, int] = {}
    for number, step in enumerate(run.steps):
        for block in step.blocks:
            for who in block.ids:
                first.setdefault(who, number)
    steps = list(dict.fromkeys(first.values()))  # those that see a sample for the first time
    count = min(groups, len(steps))
    order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed)) % count
    group_of = dict(zip(steps, order.tolist(), strict=True))
    return {who: group_of[number] for who, number in first.items()}, count


def perturbation(run: Trajectory, mixture: Mixture, removal: Removal) -> dict[str, Tensor]:
    """The change of the last state's parameters, (K, *shape) per parameter.

    `mixture(ids)` gives xi, (B, K) float64, of a block's rows; the same for every visit of a
    sample.
    """
    targets = mixture(run.steps[0].blocks[0].ids).shape[1]
    carried = Carried(run.replica.parameters, targets)
    for step in run.forward():
        _through(run, step, carried, mixture, removal)
    return carried.weights()


def _through(
    run: Trajectory, step: Step, carried: Carried, mixture: Mixture, removal: Removal
) -> None:
    """Takes what is carried through one step."""
    gradient = StepGradient(run.replica, step)
    moved = {n: d for n, d in carried.weights().items() if n in gradient.raw}
    change = gradient.contract(moved)[0] if moved else {}
    add_up(change, _sources(run, step, gradient, mixture, removal).items())
    with torch.no_grad():
        raw = {name: change[name] for name in gradient.raw if name in change}
        carried.push(alike(gradient.moves()), gradient.consumed_to_raw(raw))


def _sources(
    run: Trajectory, step: Step, gradient: StepGradient, mixture: Mixture, removal: Removal
) -> dict[str, Tensor]:
    """What the step's own rows change in its gradient when they are taken out, (K, *shape)."""
    found: dict[str, Tensor] = {}
    names, parameters = list(run.replica.parameters), list(run.replica.parameters.values())
    for block, graph in zip(step.blocks, gradient.graphs(), strict=True):
        rows = torch.eye(len(block.ids), dtype=torch.float64)
        weights = removal(rows, graph.shares_of_mean).T @ mixture(block.ids)  # (B, K)
        sources = pulled_back([graph.terms], [weights.T.to(graph.terms)], parameters)
        add_up(found, zip(names, sources, strict=True))
    return found
