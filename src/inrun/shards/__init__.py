"""Parameters of which every process holds a part: FSDP2 (`torch.distributed.fsdp.fully_shard`).

The optimizer sees a process's own part and so do update rules, validation gradients and directions
here. Samples are a process's own too, and each of them meets the whole of a parameter: one
parameter's direction at a time is gathered, contracted, and let go.
"""

from inrun.shards._fully_sharded import (
    demand_readable,
    fully_sharded,
    reduced_gradients,
    reducing,
    sharded_afterwards,
)
from inrun.shards._parts import is_sharded, own_part, own_state, part_of, parts, whole

__all__ = [
    "demand_readable",
    "fully_sharded",
    "is_sharded",
    "own_part",
    "own_state",
    "part_of",
    "parts",
    "reduced_gradients",
    "reducing",
    "sharded_afterwards",
    "whole",
]
