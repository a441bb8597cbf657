"""Passes over a parameter's arrays that are one compiled loop each, by Numba or Triton.

Nothing here is needed: each pass has its twin in torch operations, which is what runs where neither
is installed, and for tensors that no pass can take. The twin is the definition; the tests compare
the two. `passes_for` says which of Adam's passes run over given tensors, if any. The others are
loops on a CPU alone, and `takes` says whether they can run.
"""

from inrun.kernels._gradient import probe_and_squares
from inrun.kernels._normalized import gain_shares
from inrun.kernels._numba import takes
from inrun.kernels._passes import passes_for
from inrun.kernels._settled import SettlingNumbers
from inrun.kernels._slope import SlopeNumbers

__all__ = [
    "SettlingNumbers",
    "SlopeNumbers",
    "gain_shares",
    "passes_for",
    "probe_and_squares",
    "takes",
]
