"""Several processes that train one model: who they are, what each holds, and what wraps the model.

`Processes` are those that share a gradient, each with samples of its own. Under FSDP2
(`torch.distributed.fsdp.fully_shard`) each holds a part of every parameter as well: the optimizer
sees a process's own part and so do update rules, validation gradients and directions here. A
sample meets the whole of a parameter: one parameter's direction at a time is gathered, contracted,
and released.
"""

from inrun.distributed._processes import Processes, Several, agreed, gathered_step
from inrun.distributed._shards import (
    fully_sharded,
    is_sharded,
    meeting,
    own_part,
    own_state,
    part_of,
    parts,
    reduced_gradients,
    reducing,
    require_readable,
    sharded_afterwards,
    whole,
)
from inrun.distributed._wrapping import (
    IN_AN_ENGINE,
    processes_of,
    require_sharded,
    unwrapped_model,
)

__all__ = [
    "IN_AN_ENGINE",
    "Processes",
    "Several",
    "agreed",
    "fully_sharded",
    "gathered_step",
    "is_sharded",
    "meeting",
    "own_part",
    "own_state",
    "part_of",
    "parts",
    "processes_of",
    "reduced_gradients",
    "reducing",
    "require_readable",
    "require_sharded",
    "sharded_afterwards",
    "unwrapped_model",
    "whole",
]
