"""The ablation of arXiv 2602.00329: agreement against the step's size and the point expanded at.

At checked steps of a run all gradients are stretched by a factor, from a hundredth to ten, while
the optimizer's state stays: the size of the perturbation. Each estimator is compared with the exact
values of that step. Beside the estimators stand slopes of the optimizer at a point alpha * g on the
way from no gradient to g, and at the moments of the step before; all else in them is as in
`path-given`, so that they differ in the point of linearization alone. In float64: a hundredth of a
step changes a float32 loss by little more than its rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from benchmarks.fidelity.cell import Cell, Setting
from inrun.directions import ESTIMATORS, Direction, PathGiven
from inrun.optim import Move, Slope
from inrun.truth import StepGame, agreement, sample_shares, shapley_values

STRETCHES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = (3, 10, 30, 100)
COMPARED = {"path": "shared", "path-given": "given", "linearized": "given", "sgd": "given"}


class AtPoint(PathGiven):
    """`path-given` with the optimizer's derivative at alpha * g in place of its mean slope."""

    def __init__(self, alpha: float):
        self.name = f"derivative at {alpha:g} g"  # type: ignore[misc]
        self._alpha = alpha

    def slope(self, move: Move[Any, Any]) -> Slope:
        """The derivative at the point."""
        point = Move(move.rule, move.weight, self._alpha * move.gradient, move.state, move.setting)
        return point.tangent()


class AtPreviousMoments(PathGiven):
    """`path-given` with the slope of the published linearization."""

    name = "slope at the step before"

    def slope(self, move: Move[Any, Any]) -> Slope:
        """Lr * C / A."""
        return move.linearization()


POINT_DIRECTIONS: list[Direction] = [AtPreviousMoments(), *[AtPoint(alpha) for alpha in POINTS]]


class AblationCell(Cell):
    """A run that is stopped at its checked steps, and each of them stretched."""

    def _check(self, step: int, batch: Any) -> dict[str, Any] | None:
        copies = copy.deepcopy((self.model, self.optimizer))
        k, n = self._step(*copies, batch), self.task.players
        shares = sample_shares(self.model, lambda i: k * self._term(batch, i) / n, n)
        stretched = []
        for stretch in STRETCHES:
            longer = {name: stretch * share for name, share in shares.items()}
            table = StepGame(self.model, self.optimizer, longer, self.utility).table()
            if not np.isfinite(table).all():
                return None
            truth = {
                "shared": shapley_values(table)[:n, 0],
                "given": shapley_values(table[2**n :])[:, 0],
            }
            found = self._agreements(batch, stretch, truth)
            stretched.append({"stretch": stretch, "agreement": found})
        return {"step": step, "stretched": stretched}

    def _agreements(
        self, batch: Any, stretch: float, truth: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        games: dict[Direction, str] = {ESTIMATORS[name]: game for name, game in COMPARED.items()}
        games |= dict.fromkeys(POINT_DIRECTIONS, "given")
        return {
            direction.name: agreement(
                np.array(self._estimate(direction, batch, stretch=stretch)["values"]), truth[game]
            )._asdict()
            for direction, game in games.items()
        }


def measure(key: str) -> list[dict[str, Any]]:
    """The records of the cell of that name."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return AblationCell(Setting.of(key), STEPS).run()
    finally:
        torch.set_default_dtype(before)
