"""Trajectories: recorded while they happen, played again, and looked ahead along."""

from inrun.replay._carried import Carried
from inrun.replay._folder import Ids
from inrun.replay._kinks import KINK_WIDTH
from inrun.replay._lookahead import Lookahead, lookahead
from inrun.replay._parts import lookahead_parts
from inrun.replay._prospect import Prospect, summed_gradients
from inrun.replay._proxy import ErrorProxy
from inrun.replay._random import drawn_since, random_state, undisturbed_random
from inrun.replay._recorder import GIBIBYTE, Recorder, record
from inrun.replay._replica import Fetch, Losses, Task, gradient_norm
from inrun.replay._rollout import Rollout
from inrun.replay._schedule import kept_states
from inrun.replay._tracin import tracin
from inrun.replay._trajectory import Trajectory, open_trajectory

__all__ = [
    "GIBIBYTE",
    "KINK_WIDTH",
    "Carried",
    "ErrorProxy",
    "Fetch",
    "Ids",
    "Lookahead",
    "Losses",
    "Prospect",
    "Recorder",
    "Rollout",
    "Task",
    "Trajectory",
    "drawn_since",
    "gradient_norm",
    "kept_states",
    "lookahead",
    "lookahead_parts",
    "open_trajectory",
    "random_state",
    "record",
    "summed_gradients",
    "tracin",
    "undisturbed_random",
]
