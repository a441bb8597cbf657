"""Validation losses and their gradients, with one target or several, and no trace in training."""

from inrun.utility._parts import counts_of
from inrun.utility._passes import (
    Evaluation,
    curvature,
    demand_divisible,
    demand_finite,
    evaluate,
    gradients_of,
    loss_kinds,
    loss_of,
    losses_of,
)
from inrun.utility._rows import differing_row, row_count, take_rows
from inrun.utility._twice import differentiable_twice
from inrun.utility._undisturbed import displaced, undisturbed
from inrun.utility._utility import LossFunction, Utility

__all__ = [
    "Evaluation",
    "LossFunction",
    "Utility",
    "counts_of",
    "curvature",
    "demand_divisible",
    "demand_finite",
    "differentiable_twice",
    "differing_row",
    "displaced",
    "evaluate",
    "gradients_of",
    "loss_kinds",
    "loss_of",
    "losses_of",
    "row_count",
    "take_rows",
    "undisturbed",
]
