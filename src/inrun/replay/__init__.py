"""Trajectories: recorded while they happen, played again, and looked ahead along."""

from inrun.replay._kinks import KINK_WIDTH
from inrun.replay._lookahead import Lookahead, lookahead
from inrun.replay._parts import lookahead_parts
from inrun.replay._proxy import ErrorProxy
from inrun.replay._recorder import Recorder, record
from inrun.replay._tracin import tracin
from inrun.replay._trajectory import Trajectory, open_trajectory

__all__ = [
    "KINK_WIDTH",
    "ErrorProxy",
    "Lookahead",
    "Recorder",
    "Trajectory",
    "lookahead",
    "lookahead_parts",
    "open_trajectory",
    "record",
    "tracin",
]
