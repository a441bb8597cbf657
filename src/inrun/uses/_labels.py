"""Which labels look wrong, and what they should be: values and what training met, together.

With h_k the share of a sample's harm profile that falls on class k (its normalised value for that
class, negated, over the sum of all classes' sizes), p_k its mean probability of class k while it
was trained, and y its label:

    suggested   the class k other than y with the largest h_k + p_k
    doubt       the mean of two ranks from 0 to 1: of the mean loss, and of (h_k + p_k) - p_y

Neither part alone is as good; `python -m benchmarks.mislabelled` compares them.
Letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from inrun.errors import MisuseError
from inrun.ledger import Run, Seal, read_table
from inrun.training import PROBABILITIES
from inrun.uses._harm import harm_sums


@dataclass(frozen=True)
class LabelDoubts:
    """`doubt` (N,) from 0 to 1, high for labels that look wrong; `suggested` (N,) class numbers."""

    doubt: np.ndarray
    suggested: np.ndarray


def label_doubts(
    harm_NK: np.ndarray, labels: np.ndarray, losses: np.ndarray, probabilities_NK: np.ndarray
) -> LabelDoubts:
    """Doubt of every label, and the class to put in its place.

    Args:
        harm_NK: normalised values summed over visits, a column a class; see `class_harm`.
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
    return LabelDoubts(doubt, claim.argmax(1))


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


def doubt_labels(run: Run) -> bool:
    """Adds `label_doubt` and `suggested_label` to the samples of a run with one target a class.

    Returns:
        Whether the run has what it takes: several targets, labels, what `inrun train` saw, and a
        scored step.

    Raises:
        StoreError: a part of the run is missing or torn.
    """
    seen, table = run.path / PROBABILITIES, run.samples()
    if len(run.targets) < 2 or table is None or not seen.exists():
        return False
    known = read_table(seen, Seal("probabilities"), sealed=not run.notes)
    classes = known.column_names[1:]
    if not set(run.targets) <= set(classes) or not run.ledger().num_rows:
        return False
    ids, sums = harm_sums(run.visits(), run.targets)
    place = {sample_id: row for row, sample_id in enumerate(table["sample_id"].to_pylist())}
    rows = [place[i] for i in ids.tolist()]
    found = label_doubts(
        class_harm(sums, run.targets, classes),
        np.array([classes.index(table["label"][row].as_py()) for row in rows]),
        table["mean_loss"].to_numpy()[rows],
        np.stack([known[name].to_numpy()[rows] for name in classes], 1),
    )
    doubt, suggested = [None] * len(table), [None] * len(table)
    for row, value, k in zip(rows, found.doubt.tolist(), found.suggested.tolist(), strict=True):
        doubt[row], suggested[row] = value, classes[k]
    for name, column in (("label_doubt", doubt), ("suggested_label", suggested)):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(column))
    run.write_samples(table)
    return True
