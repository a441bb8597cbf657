"""Trajectories: recorded while they happen, played again, and looked ahead along."""

from inrun.replay._kinks import KINK_WIDTH
from inrun.replay._lookahead import Lookahead, lookahead
from inrun.replay._parts import lookahead_parts
from inrun.replay._proxy import ErrorProxy
from inrun.replay._recorder import GIBIBYTE, Recorder, record
from inrun.replay._schedule import kept_states
from inrun.replay._tracin import tracin
from inrun.replay._trajectory import Trajectory, open_trajectory

__all__ = [
    "GIBIBYTE",
    "KINK_WIDTH",
    "ErrorProxy",
    "Lookahead",
    "Recorder",
    "Trajectory",
    "kept_states",
    "lookahead",
    "lookahead_parts",
    "open_trajectory",
    "record",
    "tracin",
]
