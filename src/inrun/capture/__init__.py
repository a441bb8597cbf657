"""From a training step's operations to gradient shares: modes on and off, pairing, invariants."""

from inrun.capture._block import Block, Contract, Sketch, Watch
from inrun.capture._block_setting import Resting
from inrun.capture._calls import CannotReplayError, ModelCall, taken
from inrun.capture._capture import Capture
from inrun.capture._coverage import Coverage
from inrun.capture._gradient_check import GradientCheck
from inrun.capture._hold import Hold, Moves, Offload, Sketching
from inrun.capture._mode import CaptureMode
from inrun.capture._reading import Reading, are_here
from inrun.capture._scaling import not_finite
from inrun.capture._self_test import self_test
from inrun.capture._stream import Stream

__all__ = [
    "Block",
    "CannotReplayError",
    "Capture",
    "CaptureMode",
    "Contract",
    "Coverage",
    "GradientCheck",
    "Hold",
    "ModelCall",
    "Moves",
    "Offload",
    "Reading",
    "Resting",
    "Sketch",
    "Sketching",
    "Stream",
    "Watch",
    "are_here",
    "not_finite",
    "self_test",
    "taken",
]
