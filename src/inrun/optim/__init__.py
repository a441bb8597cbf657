"""Optimizers' update rules as pure functions, and the one reader of a live optimizer's state."""

from inrun.optim._adam import AdamRule
from inrun.optim._derivative import (
    Along,
    PostStepTerms,
    derivative_of,
    paired,
    post_step_terms_of,
)
from inrun.optim._divided import ElementwiseRule
from inrun.optim._hooks import Arguments, StepHooks, gave_nothing, with_closure_run
from inrun.optim._jacobian import Jacobian, MatrixRule, gauss_hermite, gauss_legendre
from inrun.optim._live import copies, skipped, state_copy
from inrun.optim._moments import AdamSetting, AdamState
from inrun.optim._move import Move, as_rows, each_piece, joined
from inrun.optim._reader import register, rule_for, tested
from inrun.optim._rule import Diagonal, History, Memory, Momentum, Rule, Slope
from inrun.optim._sgd import SGDRule, SGDSetting, SGDState
from inrun.optim._together import Together, moves, trained_parameters

__all__ = [
    "AdamRule",
    "AdamSetting",
    "AdamState",
    "Along",
    "Arguments",
    "Diagonal",
    "ElementwiseRule",
    "History",
    "Jacobian",
    "MatrixRule",
    "Memory",
    "Momentum",
    "Move",
    "PostStepTerms",
    "Rule",
    "SGDRule",
    "SGDSetting",
    "SGDState",
    "Slope",
    "StepHooks",
    "Together",
    "as_rows",
    "copies",
    "derivative_of",
    "each_piece",
    "gauss_hermite",
    "gauss_legendre",
    "gave_nothing",
    "joined",
    "moves",
    "paired",
    "post_step_terms_of",
    "register",
    "rule_for",
    "skipped",
    "state_copy",
    "tested",
    "trained_parameters",
    "with_closure_run",
]
