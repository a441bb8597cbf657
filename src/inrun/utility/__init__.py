"""Validation losses and their gradients, with one target or several, and no trace in training."""

from inrun.utility._passes import (
    Evaluation,
    curvature,
    demand_finite,
    evaluate,
    gradients_of,
    loss_of,
    losses_of,
)
from inrun.utility._rows import row_count, take_rows, tensors_of
from inrun.utility._undisturbed import displaced, restored, undisturbed
from inrun.utility._utility import LossFunction, Utility

__all__ = [
    "Evaluation",
    "LossFunction",
    "Utility",
    "curvature",
    "demand_finite",
    "displaced",
    "evaluate",
    "gradients_of",
    "loss_of",
    "losses_of",
    "restored",
    "row_count",
    "take_rows",
    "tensors_of",
    "undisturbed",
]
