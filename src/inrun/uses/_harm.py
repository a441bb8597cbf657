"""Which target a sample harms most, and whether harm says anything of a sample.

Each step's values are divided by their mean size over samples and targets, so that early steps,
where losses fall fastest, do not outweigh; summed by sample and target they are its harm profile.
With one target per class, the most harmed one is the class that the sample's label denies: a 3 that
is labelled 8 harms the threes.

In a training whose validation loss rises again, harm can be noise. It repeats where the shares of
harm in the earlier half of the steps go with those in the later half: Spearman's rho over samples
and classes, each label's mean taken off, since a label alone gives its samples most of their
profile. Letters: N samples, K classes or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.uses._samples import Valued, visited

CERTAIN = 0.01  # the probability of such a rho by chance, below which harm is heard
FEW = 20  # samples with visits in both halves, below which nothing can be said


@dataclass(frozen=True, repr=False)
class HarmProfile(Answer):
    """What `inrun.harm_profile` returns.

    Attributes:
        table: one row per sample, in the order of ids: `sample_id`, `worst_target`, and
            `worst_value`, the normalised value for that target (the more negative, the more harm).
    """

    table: pa.Table

    def sentences(self) -> list[str]:
        """How often each target is the worst-harmed one."""
        counts = pc.value_counts(self.table["worst_target"]).to_pylist()
        counts.sort(key=lambda entry: -entry["counts"])
        told = ", ".join(f"{entry['values']} by {entry['counts']:,}" for entry in counts[:8])
        return [f"{self.table.num_rows:,} samples; most harmed: {told}."]


def harm_profile(run: Valued) -> HarmProfile:
    """The most harmed target of every sample.

    Args:
        run: a stored run or a live attribution, of a utility with at least two targets.

    Raises:
        MisuseError: fewer than two targets, or an attribution without a store.
        StoreError: the run holds no visits.
    """
    targets = run.targets
    ids, sums = harm_sums(run.visits(), targets)
    worst = sums.argmin(1)
    return HarmProfile(
        pa.table(
            {
                "sample_id": ids,
                "worst_target": [targets[k] for k in worst],
                "worst_value": sums[np.arange(len(ids)), worst],
            }
        )
    )


def harm_sums(visits: pa.Table, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids in their order, (n,), and their normalised values by target, (n, K).

    Raises:
        MisuseError: fewer than two targets.
    """
    if len(targets) < 2:
        raise MisuseError(
            "A harm profile compares targets and needs at least two: give the utility one named "
            "batch per class, domain or query."
        )
    ids, row = visited(visits)
    step = visits["step"].to_numpy()
    values_BK = np.stack([visits[target].to_numpy() for target in targets], 1)
    size, count = np.bincount(step, np.abs(values_BK).mean(1)), np.bincount(step)
    mean_size = np.divide(size, count, out=np.ones(len(size)), where=size > 0)
    sums = np.zeros((len(ids), len(targets)))
    np.add.at(sums, row, values_BK / mean_size[step][:, None])
    return ids, sums


def class_harm(sums_NT: np.ndarray, targets: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """`harm_sums` by class, (N, K): the targets' columns in the classes' order, 0 for the rest."""
    found = np.zeros((len(sums_NT), len(classes)))
    for k, name in enumerate(classes):
        if name in targets:
            found[:, k] = sums_NT[:, list(targets).index(name)]
    return found


def harm_by_place(
    sums_NT: np.ndarray,
    targets: Sequence[str],
    places: Sequence[str],
    own: np.ndarray,
    choices: Sequence[str],
) -> np.ndarray:
    """Harm of a yes or a no to the target of that name, (N, 2); none where there is no such target.

    It speaks for the other choice, as a share of the sample's harm to all targets.
    """
    found = np.zeros((len(sums_NT), len(choices)))
    number = {name: k for k, name in enumerate(targets)}
    known = np.array([place in number for place in places])
    if len(choices) != 2 or not known.any():
        return found
    rows = np.flatnonzero(known)
    harm = sums_NT[rows, [number[place] for place in places if place in number]]
    found[rows, 1 - own[rows]] = harm
    found[rows, own[rows]] = np.abs(sums_NT[rows]).sum(1) - np.abs(harm)
    return found


def shares(harm_NK: np.ndarray) -> np.ndarray:
    """What part of a sample's harm falls on each class, negative where it helped."""
    size = np.abs(harm_NK).sum(1, keepdims=True)
    found: np.ndarray = np.divide(-harm_NK, size, out=np.zeros_like(harm_NK), where=size > 0)
    return found


def repeats(
    visits: pa.Table, targets: Sequence[str], classes: Sequence[str], labels: dict[object, int]
) -> bool:
    """Whether harm to classes goes on as it began; True where too few samples can say.

    `targets` are named by classes; `labels` have each sample's class by number.
    """
    step = visits["step"].to_numpy()
    if not len(step):
        return True
    late = step > np.median(np.unique(step))
    halves = []
    for chosen in (~late, late):
        ids, sums = harm_sums(visits.filter(pa.array(chosen)), targets)
        halves.append(
            dict(zip(ids.tolist(), shares(class_harm(sums, targets, classes)), strict=True))
        )
    both = [i for i in halves[0] if i in halves[1]]
    if len(both) < FEW:
        return True
    own = np.array([labels[i] for i in both])
    count = np.bincount(own, minlength=len(classes))[:, None]
    apart = []
    for half in halves:
        share_NK = np.stack([half[i] for i in both])
        means = np.zeros((len(classes), len(classes)))
        np.add.at(means, own, share_NK)
        apart.append((share_NK - (means / np.maximum(count, 1))[own]).ravel())
    if any(np.ptp(side) == 0 for side in apart):
        return True
    found = scipy.stats.spearmanr(*apart)
    return bool(found.statistic > 0 and found.pvalue < CERTAIN)
