"""Trajectories: recorded while they happen, played again, and looked ahead along."""

from inrun.replay._agreement import unexpected
from inrun.replay._ahead import AnticipatedStep, Rollout
from inrun.replay._carried import Carried
from inrun.replay._comparisons import gradient_likeness, tracin
from inrun.replay._folder import Ids
from inrun.replay._gradient import KINK_WIDTH
from inrun.replay._lookahead import Lookahead, lookahead, looked_ahead
from inrun.replay._many import lookahead_between, lookahead_groups, reweighted
from inrun.replay._proxy import ErrorProxy
from inrun.replay._recorder import GIBIBYTE, Recorder, record
from inrun.replay._removal import push_named, removal_named
from inrun.replay._replica import Fetch, Losses, Task, gradient_norm
from inrun.replay._snapshot import drawn_since, kept_states, random_state, undisturbed_random
from inrun.replay._sweep import Method, as_sgd, lookahead_parts, windows
from inrun.replay._trajectory import Replayable, Trajectory, is_recording, open_trajectory

__all__ = [
    "GIBIBYTE",
    "KINK_WIDTH",
    "AnticipatedStep",
    "Carried",
    "ErrorProxy",
    "Fetch",
    "Ids",
    "Lookahead",
    "Losses",
    "Method",
    "Recorder",
    "Replayable",
    "Rollout",
    "Task",
    "Trajectory",
    "as_sgd",
    "drawn_since",
    "gradient_likeness",
    "gradient_norm",
    "is_recording",
    "kept_states",
    "lookahead",
    "lookahead_between",
    "lookahead_groups",
    "lookahead_parts",
    "looked_ahead",
    "open_trajectory",
    "push_named",
    "random_state",
    "record",
    "removal_named",
    "reweighted",
    "tracin",
    "undisturbed_random",
    "unexpected",
    "windows",
]
