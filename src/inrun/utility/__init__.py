"""Validation losses and their gradients, with one target or several, and no trace in training."""

from inrun.utility._contrast import CONTROL, MARGIN, contrast, controls_of
from inrun.utility._draws import is_repeatable, states_kept
from inrun.utility._parts import counts_of
from inrun.utility._passes import (
    Evaluation,
    curvature,
    evaluate,
    finite_sums,
    gradients_of,
    loss_kinds,
    loss_of,
    losses_of,
    require_divisible,
    require_finite,
    require_finite_gradients,
)
from inrun.utility._rows import row_count, take_rows, tensors_of
from inrun.utility._twice import EachCall, differentiable_twice
from inrun.utility._undisturbed import displaced, own_tensors, restored, undisturbed
from inrun.utility._unequal import weighed
from inrun.utility._utility import LossFunction, Utility

__all__ = [
    "CONTROL",
    "MARGIN",
    "EachCall",
    "Evaluation",
    "LossFunction",
    "Utility",
    "contrast",
    "controls_of",
    "counts_of",
    "curvature",
    "differentiable_twice",
    "displaced",
    "evaluate",
    "finite_sums",
    "gradients_of",
    "is_repeatable",
    "loss_kinds",
    "loss_of",
    "losses_of",
    "own_tensors",
    "require_divisible",
    "require_finite",
    "require_finite_gradients",
    "restored",
    "row_count",
    "states_kept",
    "take_rows",
    "tensors_of",
    "undisturbed",
    "weighed",
]
