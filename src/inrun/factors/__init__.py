"""Gradient shares as algebra: held as factors, contracted with directions, rarely built.

`Outer` (matrices), `GroupedOuter` (stacks of them), `FusedHead` (a head whose logits are never
there at once), `Indexed` (tables), `Convolution`, `Dense` (small or without a rule), `Derived` (a
parameter used through a linear map of it) and `Owned` (slots that lie anywhere). No module and no
hook is known here.
"""

from inrun.factors._contraction import Contraction, DenseContraction, LowRankContraction
from inrun.factors._convolution import Convolution, Geometry
from inrun.factors._factor import (
    Dense,
    Derived,
    Factor,
    compute_dtype,
    share_squares,
    shares_are_less,
    squared_norms,
)
from inrun.factors._fused_head import Coefficients, FusedHead, Head, partition
from inrun.factors._outer import GroupedOuter, Indexed, Outer
from inrun.factors._owned import Owned, by_owner
from inrun.factors._sketch import Basis, View, view_of
from inrun.factors._trial import LowRank, factorize
from inrun.factors.cost import SMALL, few, flat

__all__ = [
    "SMALL",
    "Basis",
    "Coefficients",
    "Contraction",
    "Convolution",
    "Dense",
    "DenseContraction",
    "Derived",
    "Factor",
    "FusedHead",
    "Geometry",
    "GroupedOuter",
    "Head",
    "Indexed",
    "LowRank",
    "LowRankContraction",
    "Outer",
    "Owned",
    "View",
    "by_owner",
    "compute_dtype",
    "factorize",
    "few",
    "flat",
    "partition",
    "share_squares",
    "shares_are_less",
    "squared_norms",
    "view_of",
]
