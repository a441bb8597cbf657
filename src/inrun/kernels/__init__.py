"""Passes over a parameter's arrays that are one compiled loop each, by Numba or Triton.

Nothing here is needed: each pass has its twin in torch operations, which is what runs where neither
is installed, and for tensors that no pass can take. The twin is the definition; the tests compare
the two. `passes_for` says which of Adam's passes run over given tensors, if any. The others are
loops on a CPU alone, and `takes` says whether they can run. Small tensors are joined before a pass:
`few` and `flat`.
"""

from inrun.kernels._gradient import probe_and_squares
from inrun.kernels._joined import SMALL, few, flat
from inrun.kernels._normalized import gain_shares
from inrun.kernels._numba import takes
from inrun.kernels._passes import passes_for
from inrun.kernels._settled import SettlingNumbers
from inrun.kernels._slope import SlopeNumbers

__all__ = [
    "SMALL",
    "SettlingNumbers",
    "SlopeNumbers",
    "few",
    "flat",
    "gain_shares",
    "passes_for",
    "probe_and_squares",
    "takes",
]
