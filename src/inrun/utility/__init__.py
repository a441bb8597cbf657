"""Validation losses and their gradients, with one target or several, and no trace in training."""

from inrun.utility._contrast import CONTROL, contrast, controls_of
from inrun.utility._loss import is_repeatable, loss_of, require_divisible, states_kept, weighed
from inrun.utility._passes import (
    Evaluation,
    curvature,
    evaluate,
    finite_sums,
    gradients_of,
    losses_of,
    require_finite,
    require_finite_gradients,
)
from inrun.utility._rows import row_count, take_rows, tensors_in, tensors_of
from inrun.utility._undisturbed import (
    EachCall,
    differentiable_twice,
    displaced,
    own_tensors,
    restored,
    swapped,
    undisturbed,
)
from inrun.utility._utility import HALF, LossFunction, Utility

__all__ = [
    "CONTROL",
    "HALF",
    "EachCall",
    "Evaluation",
    "LossFunction",
    "Utility",
    "contrast",
    "controls_of",
    "curvature",
    "differentiable_twice",
    "displaced",
    "evaluate",
    "finite_sums",
    "gradients_of",
    "is_repeatable",
    "loss_of",
    "losses_of",
    "own_tensors",
    "require_divisible",
    "require_finite",
    "require_finite_gradients",
    "restored",
    "row_count",
    "states_kept",
    "swapped",
    "take_rows",
    "tensors_in",
    "tensors_of",
    "undisturbed",
    "weighed",
]
