"""A validation set that is split over processes in unequal parts: each counts by its rows.

The loss of the whole is put together from the processes' losses by their mean, so that each is
multiplied by W times its part of what the loss is a mean over. Letters: W processes.
"""

from __future__ import annotations

from torch import nn

from inrun.distributed import Processes, agreed
from inrun.errors import MisuseError
from inrun.utility._parts import counts_of
from inrun.utility._passes import loss_kinds
from inrun.utility._rows import row_count
from inrun.utility._utility import Utility


def weighed(utility: Utility, model: nn.Module, processes: Processes) -> Utility:
    """The utility of this process, whose mean over processes is that of all rows.

    Called by all processes. Where they have as many rows each, it is the one that was given.

    Raises:
        MisuseError: unequal parts whose losses cannot be put together; said in every process.
    """
    if processes.size == 1:
        return utility
    axis = utility.rows_axis
    own = [row_count(batch, axis) for batch in utility.batches.values()]
    everyones = processes.gathered(own)
    if all(rows == everyones[0] for rows in everyones):
        return utility
    told = any(None in rows for rows in everyones)

    def counted() -> list[dict[str, float | None]]:
        found = []
        for target, batch in utility.batches.items() if not told else ():
            by_name = counts_of(batch, axis)
            kinds = loss_kinds(utility, model, target, batch)
            found.append({k: by_name[k](batch) if k in by_name else None for k in kinds})
        return found

    scales = {}
    everyones_counts = processes.gathered(agreed(processes, counted))
    for number, target in enumerate(utility.targets):
        found = [] if told else [part[number] for part in everyones_counts]
        common = [kind for kind in (found[0] if found else ()) if all(kind in f for f in found)]
        if not common:
            raise MisuseError(
                f"The processes have {[rows[number] for rows in everyones]} validation rows of "
                f"target {target!r}, and the loss on a few of them is neither a sum nor a mean "
                "over rows or labels, so that the loss of all rows is not known from theirs. Give "
                "each process the same number of rows, or all rows to each."
            )
        sizes = [part[common[0]] for part in found]
        if None not in sizes:
            scales[target] = processes.size * sizes[processes.rank] / sum(sizes)
    return utility.scaled(scales)
