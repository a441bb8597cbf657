"""Optimizers' update rules as pure functions, and the one reader of a live optimizer's state."""

from inrun.optim._adam import AdamRule, AdamSetting, AdamState
from inrun.optim._aftermath import Aftermath, paired
from inrun.optim._aftermaths import aftermath_of
from inrun.optim._automatic import derivative_of
from inrun.optim._copies import copies, state_copy
from inrun.optim._derivative import Along, StepDerivative, joined
from inrun.optim._hooks import Arguments, StepHooks, gave_nothing, with_closure_run
from inrun.optim._jacobian import Jacobian, MatrixRule
from inrun.optim._live import skipped
from inrun.optim._pieces import as_rows, each_piece
from inrun.optim._quadrature import gauss_hermite, gauss_legendre
from inrun.optim._reader import move_of, moves, register, rule_for, tested, trained_parameters
from inrun.optim._rule import History, Memory, Move, Rule
from inrun.optim._sgd import SGDRule, SGDSetting, SGDState
from inrun.optim._slope import Diagonal, Slope
from inrun.optim._together import Together

__all__ = [
    "AdamRule",
    "AdamSetting",
    "AdamState",
    "Aftermath",
    "Along",
    "Arguments",
    "Diagonal",
    "History",
    "Jacobian",
    "MatrixRule",
    "Memory",
    "Move",
    "Rule",
    "SGDRule",
    "SGDSetting",
    "SGDState",
    "Slope",
    "StepDerivative",
    "StepHooks",
    "Together",
    "aftermath_of",
    "as_rows",
    "copies",
    "derivative_of",
    "each_piece",
    "gauss_hermite",
    "gauss_legendre",
    "gave_nothing",
    "joined",
    "move_of",
    "moves",
    "paired",
    "register",
    "rule_for",
    "skipped",
    "state_copy",
    "tested",
    "trained_parameters",
    "with_closure_run",
]
