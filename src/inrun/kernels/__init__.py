"""Passes over a parameter's arrays that are one compiled loop each, where Numba is installed.

Nothing here is needed: each pass has its twin in torch operations, which is what runs on
accelerators, without Numba, and for tensors that a loop cannot take. The twin is the definition;
the tests compare the two.
"""

from inrun.kernels._gradient import probe_and_squares
from inrun.kernels._normalized import gain_shares
from inrun.kernels._numba import takes
from inrun.kernels._settled import SettlingNumbers, settle_adam
from inrun.kernels._slope import SlopeNumbers, adam_slope

__all__ = [
    "SettlingNumbers",
    "SlopeNumbers",
    "adam_slope",
    "gain_shares",
    "probe_and_squares",
    "settle_adam",
    "takes",
]
