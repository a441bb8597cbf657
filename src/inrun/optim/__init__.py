"""Optimizers' update rules as pure functions, and the one reader of a live optimizer's state."""

from inrun.optim._adam import AdamRule, AdamSetting, AdamState
from inrun.optim._derivative import Along, StepDerivative, derivative_of, joined
from inrun.optim._reader import move_of, moves, rule_for, trained_parameters
from inrun.optim._rule import History, Move, Rule
from inrun.optim._sgd import SGDRule, SGDSetting, SGDState

__all__ = [
    "AdamRule",
    "AdamSetting",
    "AdamState",
    "Along",
    "History",
    "Move",
    "Rule",
    "SGDRule",
    "SGDSetting",
    "SGDState",
    "StepDerivative",
    "derivative_of",
    "joined",
    "move_of",
    "moves",
    "rule_for",
    "trained_parameters",
]
