"""Which labels look wrong, by what training met at them and by the harm they do.

With h_k the share of a sample's harm profile that falls on class k (its normalised value for that
class, negated, over the sum of all classes' sizes), p_k its mean probability of class k while it
was trained, and y its label:

    suggested   the class k other than y with the largest h_k + p_k
    doubt       the mean of two ranks from 0 to 1: of the mean loss, and of (h_k + p_k) - p_y

Neither part alone is as good; `python -m benchmarks.mislabelled` compares them. Harm that does not
repeat within a run is left out, see `_harm.py`. Letters: N samples, K classes or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from inrun.answers import Answer
from inrun.errors import MisuseError
from inrun.ledger import PartId, Run, read_table, samples_table
from inrun.training import ANSWERS, PROBABILITIES
from inrun.uses._harm import class_harm, harm_by_place, harm_sums, repeats, shares
from inrun.uses._samples import Valued, visited


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
    claim: np.ndarray = shares(harm_NK) + probabilities_NK
    rows = np.arange(n)
    own = probabilities_NK[rows, labels]
    claim[rows, labels] = -np.inf
    doubt = (_ranks(losses) + _ranks(claim.max(1) - own)) / 2
    return Doubts(doubt, claim.argmax(1))


def _ranks(x: np.ndarray) -> np.ndarray:
    """0 to 1, ties sharing their mean."""
    return (scipy.stats.rankdata(x) - 1) / max(1, len(x) - 1)  # type: ignore[no-any-return]


@dataclass(frozen=True, repr=False)
class LabelDoubts(Answer):
    """What `inrun.label_doubts` returns.

    Attributes:
        table: one row per label, the most doubtful first: `sample_id`, `label`,
            `suggested_label`, and `doubt_rank`, 1 for the most doubtful. Where samples have several
            labels, also `place`: which of the classes, or which word by number and text.
        by_harm: whether harm took part: where it did not repeat within the run it does not.
    """

    table: pa.Table
    by_harm: bool = True

    def sentences(self) -> list[str]:
        """How to read it."""
        return [
            f"{self.table.num_rows:,} labels, the most doubtful first. The order says which label "
            "to look at first, not how probably it is wrong: inrun.wrong_labels does."
        ] + [
            "By losses and probabilities alone: the samples' harm in the later half of the steps "
            "does not go with that in the earlier one."
        ] * (not self.by_harm)


def label_doubts(run: Valued, seen: Any = None) -> LabelDoubts:
    """Which labels look wrong, and what they should be.

    A class is judged by loss, probabilities and the sample's harm to each class; so is each yes or
    no where a sample may have several classes. Tags of words and the order of two answers are
    judged by loss and probabilities, a number by its distance from the mean prediction.

    Args:
        run: a stored run or a live attribution, of a utility with one target per class, named by
            the class. Classes without a target are judged without harm.
        seen: what training met, one row per sample: `sample_id`, `label` (a class's name),
            `mean_loss`, and one column per class with its mean probability; or a numeric `label`
            and `mean_prediction`. A pyarrow table, a data frame or a mapping of columns. A run of
            `inrun train` holds it already.

    Raises:
        MisuseError: fewer than two targets, targets that are no classes, no scored step, or
            nothing is known of labels, losses and probabilities.
        StoreError: a part of the run is missing or torn.
    """
    known = _known(run, seen)
    if known is None:
        raise MisuseError(
            "Label doubts need what training met at each sample, and this run holds none of it. "
            "Pass seen=: sample_id, label, mean_loss, and one column per class with its mean "
            "probability; or train with `inrun train`, which keeps them."
        )
    if not run.ledger().num_rows:
        raise MisuseError("No step was scored, so there are no values to doubt a label by.")
    return _doubted(run, known)


def _doubted(run: Valued, known: _Seen | _Numbers) -> LabelDoubts:
    if isinstance(known, _Numbers):
        ids, labels, predictions = known
        ranks = scipy.stats.rankdata(-np.abs(labels - predictions), method="min")
        names = ("sample_id", "label", "suggested_label", "doubt_rank")
        columns = (ids, labels, predictions, ranks.astype(np.int64))
        table = pa.table(dict(zip(names, columns, strict=True)))
        return LabelDoubts(table.sort_by("doubt_rank"))
    table, by_harm = _of_classes(run, known)
    return LabelDoubts(table.sort_by("doubt_rank"), by_harm)


def _of_classes(run: Valued, known: _Seen) -> tuple[pa.Table, bool]:
    """The table, and whether harm took part."""
    visits = run.visits()
    ids, sums = _harm(visits, run.targets, known)
    place = {sample_id: row for row, sample_id in enumerate(ids.tolist())}
    strangers = [i for i in place if i not in set(known.ids)]
    if strangers:
        raise MisuseError(
            f"seen says nothing of the sample {strangers[0]!r} and {len(strangers) - 1} others."
        )
    rows = [row for row, i in enumerate(known.ids) if i in place]
    rows.sort(key=lambda row: place[known.ids[row]])
    labels = [known.labels[row] for row in rows]
    own = np.array([known.classes.index(str(label)) for label in labels])
    harm, places = sums[[place[known.ids[row]] for row in rows]], None
    by_harm = True
    if known.places is None:
        labelled = {known.ids[row]: k for row, k in zip(rows, own.tolist(), strict=True)}
        by_harm = repeats(visits, run.targets, known.classes, labelled)
        harm = by_harm * class_harm(harm, run.targets, known.classes)
    else:
        places = [known.places[row] for row in rows]
        harm = harm_by_place(harm, run.targets, places, own, known.classes)
    found = doubts(harm, own, known.losses[rows], known.probabilities[rows])
    table = pa.table(
        {
            "sample_id": pa.array([known.ids[row] for row in rows], pa.array(ids).type),
            **({"place": places} if places and any(places) else {}),
            "label": labels,
            "suggested_label": [known.classes[k] for k in found.suggested.tolist()],
            "doubt_rank": scipy.stats.rankdata(-found.doubt, method="min").astype(np.int64),
        }
    )
    return table, by_harm


def _harm(visits: pa.Table, targets: Sequence[str], known: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and samples' harm by target; none where one target judges labels that are no classes.

    Raises:
        MisuseError: a target is no class.
    """
    if known.places is not None and len(targets) == 1:
        ids = visited(visits)[0]
        return ids, np.zeros((len(ids), 1))
    strangers = set(targets) - set(known.classes)
    if strangers and known.places is None:
        raise MisuseError(
            f"The target {min(strangers)!r} is none of the classes {', '.join(known.classes)}: "
            "name the utility's targets by classes."
        )
    return harm_sums(visits, targets)


def note_label_doubts(run: Run) -> LabelDoubts | None:
    """Adds `doubt_rank` and `suggested_label` to the samples of a run of `inrun train`.

    Where samples have several labels it is the most doubtful one of each.

    Returns:
        The doubts; None where the run has not what it takes: labels, several targets that are
        classes, and a scored step.

    Raises:
        StoreError: a part of the run is missing or torn.
    """
    table = run.samples()
    if table is None or not run.ledger().num_rows:
        return None
    known = _known(run, None)
    if known is None:
        return None
    if (
        isinstance(known, _Seen)
        and known.places is None
        and (len(run.targets) < 2 or not set(run.targets) <= set(known.classes))
    ):
        return None
    found = _doubted(run, known)
    first = _first_of_each(found.table)
    place = pc.index_in(table["sample_id"], value_set=first["sample_id"].combine_chunks())
    for name in ("doubt_rank", "suggested_label"):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, first[name].take(place))
    run.write_samples(table)
    return found


def _first_of_each(table: pa.Table) -> pa.Table:
    """Each sample's most doubtful label, with what to put at which place as one text."""
    if "place" not in table.column_names:
        return table
    first: dict[Any, str] = {}
    for row in table.to_pylist():
        says = f"{row['place']}: {row['suggested_label']}, not {row['label']}"
        first.setdefault(row["sample_id"], says)
    return pa.table(
        {
            "sample_id": pa.array(first, table["sample_id"].type),
            "suggested_label": list(first.values()),
            "doubt_rank": pa.array(range(1, len(first) + 1), pa.int64()),
        }
    )


class _Numbers(NamedTuple):
    """Ids, labels and mean predictions (N,) of samples that have a number for a label."""

    ids: Any
    labels: np.ndarray
    predictions: np.ndarray


class _Seen(NamedTuple):
    """What training met at each label; `probabilities` (N, K).

    `places` is None where each sample has one label that is a class.
    """

    ids: list[Any]
    places: list[str] | None
    labels: list[Any]
    losses: np.ndarray
    classes: list[str]
    probabilities: np.ndarray


_OWN = (":id", ":place", ":label", ":loss")


def _known(run: Valued, seen: Any) -> _Seen | _Numbers | None:
    """What was given, else what `inrun train` kept, of each label; None where that is nothing."""
    stored = run if seen is None and isinstance(run, Run) else None
    given = None if seen is None else samples_table(seen, None)
    table = given if stored is None else stored.samples()
    if table is not None and {"label", "mean_prediction"} <= set(table.column_names):
        table = table.filter(pc.is_valid(table["mean_prediction"]))
        numbers = (table[n].cast(pa.float64()).to_numpy() for n in ("label", "mean_prediction"))
        return _Numbers(table["sample_id"], *numbers)
    if stored is not None and (stored.path / PROBABILITIES).exists():
        part, whole = stored.path / PROBABILITIES, not stored.notes
        return _seen(read_table(part, PartId("probabilities"), digested=whole))
    if given is None or not {"label", "mean_loss"} <= set(given.column_names):
        return None
    own = {"sample_id": ":id", "label": ":label", "mean_loss": ":loss"}
    return _seen(given.rename_columns([own.get(name, name) for name in given.column_names]))


def _seen(table: pa.Table) -> _Seen:
    table = table.filter(pc.is_valid(table[":loss"]))
    classes = [name for name in table.column_names if name not in _OWN]
    places = table[":place"].to_pylist() if ":place" in table.column_names else None
    if places is not None and not any(places) and tuple(classes) != ANSWERS:
        places = None
    return _Seen(
        table[":id"].to_pylist(), places, table[":label"].to_pylist(), table[":loss"].to_numpy(),
        classes, np.stack([table[name].to_numpy() for name in classes], 1),
    )  # fmt: skip
