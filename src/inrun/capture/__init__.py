"""From a training step's operations to gradient shares: modes on and off, pairing, invariants."""

from inrun.capture._calls import CannotReplayError, ModelCall, taken
from inrun.capture._capture import Block, Capture
from inrun.capture._collector import Resting
from inrun.capture._coverage import Coverage
from inrun.capture._gradient_check import GradientCheck
from inrun.capture._hold import Hold
from inrun.capture._mode import CaptureMode
from inrun.capture._offload import Moves, Offload
from inrun.capture._processes import Alone, Processes, Several, agreed, gathered_step
from inrun.capture._reading import Reading, reads_late
from inrun.capture._self_test import self_test
from inrun.capture._sources import Root
from inrun.capture._stream import Stream
from inrun.capture._uncompiled import compiled_parts

__all__ = [
    "Alone",
    "Block",
    "CannotReplayError",
    "Capture",
    "CaptureMode",
    "Coverage",
    "GradientCheck",
    "Hold",
    "ModelCall",
    "Moves",
    "Offload",
    "Processes",
    "Reading",
    "Resting",
    "Root",
    "Several",
    "Stream",
    "agreed",
    "compiled_parts",
    "gathered_step",
    "reads_late",
    "self_test",
    "taken",
]
