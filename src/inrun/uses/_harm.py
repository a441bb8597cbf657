"""Harm profiles: which target a sample harms most, over all its visits.

Each step's values are divided by their mean size over samples and targets, so that early steps,
where losses fall fastest, do not outweigh; then they are summed by sample and target. With one
target a class, the most harmed one is the class that the sample's label denies: a 3 that is
labelled 8 harms the threes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from inrun.errors import MisuseError


def harm_profile(visits: pa.Table, targets: Sequence[str]) -> pa.Table:
    """The most harmed target of every sample.

    Args:
        visits: as `Attribution.visits` or `Run.visits` give them.
        targets: the utility's targets, at least two.

    Returns:
        A row a sample, in the order of ids: `sample_id`, `worst_target`, and `worst_value`, the
        normalised value for that target (the more negative, the more harm).

    Raises:
        MisuseError: fewer than two targets.
    """
    ids, sums = harm_sums(visits, targets)
    worst = sums.argmin(1)
    return pa.table(
        {
            "sample_id": ids,
            "worst_target": [targets[k] for k in worst],
            "worst_value": sums[np.arange(len(ids)), worst],
        }
    )


def harm_sums(visits: pa.Table, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids in their order, (n,), and their normalised values by target, (n, K).

    Raises:
        MisuseError: fewer than two targets.
    """
    if len(targets) < 2:
        raise MisuseError(
            "A harm profile compares targets and needs at least two: give the utility one named "
            "batch a class, domain or query."
        )
    ids, row = np.unique(visits["sample_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    step = visits["step"].to_numpy()
    values_BK = np.stack([visits[target].to_numpy() for target in targets], 1)
    size, count = np.zeros(step.max() + 1), np.zeros(step.max() + 1)
    np.add.at(size, step, np.abs(values_BK).mean(1))
    np.add.at(count, step, 1)
    mean_size = np.divide(size, count, out=np.ones_like(size), where=size > 0)
    sums = np.zeros((len(ids), len(targets)))
    np.add.at(sums, row, values_BK / mean_size[step][:, None])
    return ids, sums
