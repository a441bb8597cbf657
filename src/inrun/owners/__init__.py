"""Owners follow the data: which sample every slot of every tensor of a block belongs to.

`Owners` gives each operation's outputs their `Map`. `pointwise`, `moves`, `lookups`,
`contractions`, `along` and `layers` hold the rules, one registered function per family; `exchanged`
asks an operation itself. See docs/samples.md.
"""

from inrun.owners import along, contractions, layers, lookups, moves, pointwise
from inrun.owners._entries import Axes, Entries, Ownership, Roots, ownership
from inrun.owners._exchange import exchanged
from inrun.owners._follower import Owners, root_kind
from inrun.owners._ids import IdReader, read_ids
from inrun.owners._map import MIXED, NONE, SUM, UNKNOWN, Map, adopted
from inrun.owners._operation import Op, families, find, rule

__all__ = [
    "MIXED",
    "NONE",
    "SUM",
    "UNKNOWN",
    "Axes",
    "Entries",
    "IdReader",
    "Map",
    "Op",
    "Owners",
    "Ownership",
    "Roots",
    "adopted",
    "along",
    "contractions",
    "exchanged",
    "families",
    "find",
    "layers",
    "lookups",
    "moves",
    "ownership",
    "pointwise",
    "read_ids",
    "root_kind",
    "rule",
]
