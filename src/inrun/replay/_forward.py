"""One pass forward over a trajectory: what a mixture of removals does to every later state.

delta = sum_i xi_i delta_i, delta_i what taking sample i out does to (w, moments) to first order. It
is carried through each step by the optimizer's derivative pushed forward, with the training loss's
curvature, the transpose of the backward sweep. Letters: B rows of a block, K mixtures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.optim import derivative_of
from inrun.replay._carried import Carried, alike
from inrun.replay._folder import Ids, Step
from inrun.replay._gradient import StepGradient, pulled_back
from inrun.replay._removal import Removal
from inrun.replay._trajectory import Trajectory

Mixture = Callable[[Ids], Tensor]


def perturbation(run: Trajectory, mixture: Mixture, removal: Removal) -> dict[str, Tensor]:
    """The change of the last state's parameters, (K, *shape) a parameter.

    Args:
        run: the recorded run.
        mixture: `mixture(ids)` gives xi, (B, K) float64, of a block's rows; the same for every
            visit of a sample.
        removal: what taking out means.
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
    moves = alike(gradient.moves())
    moved = {n: d for n, d in carried.weights().items() if n in gradient.raw}
    change = gradient.contract(moved)[0] if moved else {}
    for name, source in _sources(run, step, gradient, mixture, removal).items():
        change[name] = change[name] + source if name in change else source
    with torch.no_grad():
        change = gradient.consumed_to_raw({n: change[n] for n in gradient.raw if n in change})
        for names, move in moves.items():
            derivative = derivative_of(move.rule)
            before = carried.of(names, derivative.moments(move))
            carried.put(names, derivative.push(move, before, carried.flat(names, change)))


def _sources(
    run: Trajectory, step: Step, gradient: StepGradient, mixture: Mixture, removal: Removal
) -> dict[str, Tensor]:
    """What the step's own rows change in its gradient when they are taken out, (K, *shape)."""
    found: dict[str, Tensor] = {}
    names, parameters = list(run.replica.parameters), list(run.replica.parameters.values())
    for block, graph in zip(step.blocks, gradient.graphs(), strict=True):
        rows = torch.eye(len(block.ids), dtype=torch.float64)
        weights = removal.effects(rows, graph.shares_of_mean).T @ mixture(block.ids)  # (B, K)
        sources = pulled_back([graph.terms], [weights.T.to(graph.terms)], parameters)
        for name, source in zip(names, sources, strict=True):
            if source is not None:
                found[name] = found[name] + source if name in found else source
    return found
