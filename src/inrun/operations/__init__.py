"""Rules from an operation's arguments and output gradient to gradient shares, one file per family.

`find(name)` gives an operation's rule; what has none goes to `fallback`, which is slow and right.
A new operation is one function under `@operation(...)`: see CONTRIBUTING.md.
"""

from inrun.operations import elementwise, fused_head, matrix
from inrun.operations._call import (
    Call,
    Layout,
    Operation,
    Rule,
    Slots,
    find,
    inside,
    is_in_place,
    operation,
)
from inrun.operations.fallback import RandomState, fallback, outputs_of, repeated, replace

__all__ = [
    "Call",
    "Layout",
    "Operation",
    "RandomState",
    "Rule",
    "Slots",
    "elementwise",
    "fallback",
    "find",
    "fused_head",
    "inside",
    "is_in_place",
    "matrix",
    "operation",
    "outputs_of",
    "repeated",
    "replace",
]
