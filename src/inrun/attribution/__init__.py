"""The public object: attach to a loop, score in the optimizer's step hooks, give tables."""

from inrun.attribution._attach import attach
from inrun.attribution._attribution import Attribution
from inrun.attribution._options import Options, require_settings
from inrun.attribution._scoring import Budget, EveryStep, Sampled, Scoring, Window
from inrun.scoring import Tokens
from inrun.truth import Audit

__all__ = [
    "Attribution",
    "Audit",
    "Budget",
    "EveryStep",
    "Options",
    "Sampled",
    "Scoring",
    "Tokens",
    "Window",
    "attach",
    "require_settings",
]
