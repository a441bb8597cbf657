"""Which target a sample harms most, and which labels look wrong.

Each step's values are divided by their mean size over samples and targets, so that early steps,
where losses fall fastest, do not outweigh; summed by sample and target they are its harm profile.
With one target per class, the most harmed one is the class that the sample's label denies: a 3 that
is labelled 8 harms the threes.

With h_k the share of a sample's harm profile that falls on class k (its normalised value for that
class, negated, over the sum of all classes' sizes), p_k its mean probability of class k while it
was trained, and y its label:

    suggested   the class k other than y with the largest h_k + p_k
    doubt       the mean of two ranks from 0 to 1: of the mean loss, and of (h_k + p_k) - p_y

Neither part alone is as good; `python -m benchmarks.mislabelled` compares them.
Letters: N samples, K classes or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.ledger import PartId, Run, read_table, samples_table
from inrun.training import PROBABILITIES
from inrun.uses._samples import Valued


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


class Doubts(NamedTuple):
    """`doubt` (N,) from 0 to 1, high for labels that look wrong; `suggested` (N,) class numbers."""

    doubt: np.ndarray
    suggested: np.ndarray


def doubts(
    harm_NK: np.ndarray, labels: np.ndarray, losses: np.ndarray, probabilities_NK: np.ndarray
) -> Doubts:
    """Doubt of every label, and the class to put in its place.

    Args:
        harm_NK: normalised values summed over visits, one column per class; see `class_harm`.
        labels: (N,) class numbers.
        losses: (N,) mean training loss.
        probabilities_NK: mean probabilities while training.

    Raises:
        MisuseError: shapes that do not fit.
    """
    n, classes = probabilities_NK.shape
    if harm_NK.shape != (n, classes) or labels.shape != (n,) or losses.shape != (n,):
        raise MisuseError(
            f"Label doubts need {n} labels and losses and harm of shape {(n, classes)}, not "
            f"{labels.shape}, {losses.shape} and {harm_NK.shape}."
        )
    size = np.abs(harm_NK).sum(1, keepdims=True)
    shares = np.divide(-harm_NK, size, out=np.zeros_like(harm_NK), where=size > 0)
    claim: np.ndarray = shares + probabilities_NK
    rows = np.arange(n)
    own = probabilities_NK[rows, labels]
    claim[rows, labels] = -np.inf
    doubt = (_ranks(losses) + _ranks(claim.max(1) - own)) / 2
    return Doubts(doubt, claim.argmax(1))


def _ranks(x: np.ndarray) -> np.ndarray:
    """0 to 1, ties sharing their mean."""
    return (rankdata(x) - 1) / max(1, len(x) - 1)  # type: ignore[no-any-return]


def class_harm(sums_NT: np.ndarray, targets: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """`harm_sums` by class, (N, K): the targets' columns in the classes' order, 0 for the rest."""
    found = np.zeros((len(sums_NT), len(classes)))
    for k, name in enumerate(classes):
        if name in targets:
            found[:, k] = sums_NT[:, list(targets).index(name)]
    return found


@dataclass(frozen=True, repr=False)
class LabelDoubts(Answer):
    """What `inrun.label_doubts` returns.

    Attributes:
        table: one row per sample, the most doubtful first: `sample_id`, `label`,
            `suggested_label`, and `doubt_rank`, 1 for the most doubtful.
    """

    table: pa.Table

    def sentences(self) -> list[str]:
        """How to read it."""
        return [
            f"{self.table.num_rows:,} labels, the most doubtful first. The order says which label "
            "to look at first, not how probably it is wrong: inrun.wrong_labels does."
        ]


def label_doubts(run: Valued, seen: Any = None) -> LabelDoubts:
    """Which labels look wrong, and what they should be.

    Args:
        run: a stored run or a live attribution, of a utility with one target per class, named by
            the class. Classes without a target are judged without harm.
        seen: what training met, one row per sample: `sample_id`, `label` (a class's name),
            `mean_loss`, and one column per class with its mean probability; a pyarrow table, a
            data frame or a mapping of columns. A run of `inrun train` holds it already.

    Raises:
        MisuseError: fewer than two targets, targets that are no classes, no scored step, or
            nothing is known of labels, losses and probabilities.
        StoreError: a part of the run is missing or torn.
    """
    known = _stored_seen(run) if seen is None else _given_seen(samples_table(seen, None))
    if known is None:
        raise MisuseError(
            "Label doubts need what training met at each sample, and this run holds none of it. "
            "Pass seen=: sample_id, label, mean_loss, and one column per class with its mean "
            "probability; or train with `inrun train`, which keeps them."
        )
    strangers = set(run.targets) - set(known.classes)
    if strangers or not run.ledger().num_rows:
        raise MisuseError(
            f"The target {min(strangers)!r} is none of the classes {', '.join(known.classes)}: "
            "name the utility's targets by classes."
            if strangers
            else "No step was scored, so there are no values to doubt a label by."
        )
    ids, sums = harm_sums(run.visits(), run.targets)
    place = {sample_id: row for row, sample_id in enumerate(known.ids)}
    missing = [i for i in ids.tolist() if i not in place]
    if missing:
        raise MisuseError(
            f"seen says nothing of the sample {missing[0]!r} and {len(missing) - 1} others."
        )
    rows = [place[i] for i in ids.tolist()]
    labels = [known.labels[row] for row in rows]
    found = doubts(
        class_harm(sums, run.targets, known.classes),
        np.array([known.classes.index(str(label)) for label in labels]),
        known.losses[rows],
        known.probabilities[rows],
    )
    table = pa.table(
        {
            "sample_id": ids,
            "label": labels,
            "suggested_label": [known.classes[k] for k in found.suggested.tolist()],
            "doubt_rank": rankdata(-found.doubt, method="min").astype(np.int64),
        }
    )
    return LabelDoubts(table.sort_by("doubt_rank"))


def note_label_doubts(run: Run) -> LabelDoubts | None:
    """Adds `doubt_rank` and `suggested_label` to the samples of a run of `inrun train`.

    Returns:
        The doubts; None where the run has not what it takes: several targets that are classes,
        labels, and a scored step.

    Raises:
        StoreError: a part of the run is missing or torn.
    """
    known, table = _stored_seen(run), run.samples()
    if known is None or table is None or len(run.targets) < 2 or not run.ledger().num_rows:
        return None
    if not set(run.targets) <= set(known.classes):
        return None
    found = label_doubts(run)
    place = pc.index_in(table["sample_id"], value_set=found.table["sample_id"].combine_chunks())
    for name in ("doubt_rank", "suggested_label"):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, found.table[name].take(place))
    run.write_samples(table)
    return found


class _Seen(NamedTuple):
    """What training met, in the order of `ids`; `probabilities` (N, K)."""

    ids: list[Any]
    labels: list[Any]
    losses: np.ndarray
    classes: list[str]
    probabilities: np.ndarray


def _given_seen(table: pa.Table) -> _Seen | None:
    if not {"label", "mean_loss"} <= set(table.column_names):
        return None
    classes = table.drop_columns(["sample_id", "label", "mean_loss"])
    return _seen(table, classes)


def _stored_seen(run: Valued) -> _Seen | None:
    """What `inrun train` kept of each sample, or None."""
    if not isinstance(run, Run) or not (run.path / PROBABILITIES).exists():
        return None
    table = run.samples()
    if table is None:
        return None
    found = read_table(run.path / PROBABILITIES, PartId("probabilities"), digested=not run.notes)
    return _seen(table, found.select(found.column_names[1:]))  # the first are the ids


def _seen(table: pa.Table, classes: pa.Table) -> _Seen:
    ids, labels = table["sample_id"].to_pylist(), table["label"].to_pylist()
    columns = [column.to_numpy() for column in classes]
    losses = table["mean_loss"].to_numpy()
    return _Seen(ids, labels, losses, classes.column_names, np.stack(columns, 1))
