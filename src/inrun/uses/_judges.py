"""What judges a run's samples: how much each class counts, and how much of the data it is.

A utility with one target per class counts every class alike unless it is told otherwise. Where a
class is a large part of the training data, its rows then look harmful by construction: another row
of it takes little off its own class's loss and puts something on the others'. So the two shares are
put beside each other, and a stored run can be weighed again (`Run.judged_by`, which is exact).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from inrun.errors import MisuseError, require_one_of
from inrun.ledger import Run
from inrun.training import CONFIG, ONE_CLASS, read_config
from inrun.uses._samples import Valued, described, samples_of

AnyRun = TypeVar("AnyRun", bound=Valued)
JUDGES = ("even", "training")
FAR = 1.5  # times: where a class's share of the data is so far from what it counts, it is said
FEW_ROWS = 5
SHOWN = 6


class Judged(NamedTuple):
    """Of one class: its target, its share of the samples, and its share of the judgement."""

    target: str
    share: float
    weight: float


def judged_classes(run: Valued, samples: Any = None) -> list[Judged]:
    """Every class that is a target; empty where targets are no labels, or there is one target."""
    return _classes(run, _labels(run, samples))


def _classes(run: Valued, labels: list[str] | None) -> list[Judged]:
    weights = getattr(run, "weights", None)
    if labels is None or weights is None or len(run.targets) < 2:
        return []
    counts = Counter(labels)
    share = {name: counts[_label(name, counts)] / len(labels) for name in run.targets}
    if not any(share.values()):
        return []
    return [Judged(name, share[name], weights[name]) for name in run.targets]


def judged_as(run: AnyRun, judge: str | None, samples: Any = None) -> AnyRun:
    """The run, judged by classes alike ('even') or by their shares of the training data.

    `judge` None leaves it as it was trained.

    Raises:
        MisuseError: neither of those, one target only, or targets that are no labels.
    """
    if judge is None:
        return run
    require_one_of("judge", judge, JUDGES)
    if not isinstance(run, Run):
        raise MisuseError("judge= weighs a stored run again: pass inrun.load(its folder).")
    if judge == "even":
        return cast(AnyRun, run.judged_by(dict.fromkeys(run.targets, 1.0)))
    found = judged_classes(run, samples)
    if not found:
        raise MisuseError(
            "judge='training' weighs each class by its share of the training samples, and this "
            "run's targets are not its samples' labels. Say what the samples are (--samples FILE, "
            "Run.describe) with a column 'label', and name targets by labels."
        )
    return cast(AnyRun, run.judged_by({one.target: one.share for one in found}))


def judge_notes(run: Valued, samples: Any = None) -> list[str]:
    """What judges, in sentences; the first says how classes count, the others warn."""
    labels = _labels(run, samples)
    found = _classes(run, labels)
    if labels is None or not found:
        return []
    even = max(j.weight for j in found) - min(j.weight for j in found) < 1e-9
    said = ["Every class counts equally." if even else "Classes count " + _listed(found) + "."]
    far = [j for j in found if j.share > 0 and not 1 / FAR <= j.weight / j.share <= FAR]
    if far:
        far.sort(key=lambda j: -j.share)
        each = "; ".join(
            f"{j.target} is {j.share:.0%} of the samples and {j.weight:.0%} of the judgement"
            for j in far[:SHOWN]
        )
        more = f"; and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
        said.append(
            f"{each}{more}. Samples of a class that counts less than its share look harmful for "
            "that reason alone: judge='training' (--judge training) weighs classes by their shares."
        )
    return said + _few(_validation_labels(run)) + _nobody(run, labels)


def unjudged(run: Valued, samples: Any = None) -> np.ndarray:
    """(n,) bool, in the order of ids: samples whose label no validation row has."""
    labels = _labels(run, samples)
    if labels is None:
        return np.zeros(run.values().num_rows, dtype=bool)
    return _left_out(run, labels)


def _labels(run: Valued, samples: Any) -> list[str] | None:
    table = samples_of(run, samples)
    if table is None or "label" not in table.column_names or not _one_class_each(run):
        return None
    return [str(label) for label in described(run.values(), table)["label"].to_pylist()]


def _one_class_each(run: Valued) -> bool:
    """Whether a label is one class: not so in runs of `inrun train` on numbers, words or pairs."""
    if not isinstance(run, Run) or not (run.path / CONFIG).exists():
        return True
    return read_config(run.path).task in ONE_CLASS


def _label(target: str, known: Collection[str]) -> str:
    """The label that a target is named by; `inrun train` calls some 'class NAME'."""
    plain = target.removeprefix("class ")
    return plain if target not in known and plain in known else target


def _judging(run: Valued, labels: list[str]) -> set[str] | None:
    """The labels that something judges; None where that is not known."""
    own = set(labels)
    named = {_label(name, own) for name in run.targets} & own
    if len(run.targets) > 1 and named:
        return named
    found = set(_validation_labels(run))
    return found if found & own else None


def _validation_labels(run: Valued) -> list[str]:
    """Those that the run was told of; there may be none."""
    told = run.samples("validation") if isinstance(run, Run) else None
    if told is None or "label" not in told.column_names:
        return []
    return [str(label) for label in told["label"].to_pylist()]


def _left_out(run: Valued, labels: list[str]) -> np.ndarray:
    """(n,) bool: whose label nothing judges; nobody's where that is not known."""
    known = _judging(run, labels)
    return np.array([known is not None and label not in known for label in labels], dtype=bool)


def _few(validation: list[str]) -> list[str]:
    """Classes of few validation rows."""
    counts = Counter(validation)
    few = sorted((n, name) for name, n in counts.items() if n < FEW_ROWS)
    if not few:
        return []
    return [
        f"Judged by fewer than {FEW_ROWS} validation rows: "
        + _some([f"{name} ({n})" for n, name in few])
        + ". What is said of these classes would be otherwise by other rows."
    ]


def _nobody(run: Valued, labels: list[str]) -> list[str]:
    none = _left_out(run, labels)
    if not none.any():
        return []
    names = sorted({label for label, left in zip(labels, none.tolist(), strict=True) if left})
    return [
        f"No validation row has the label {_some(names)}: of its {int(none.sum()):,} samples the "
        "values know only what they did to other classes, so nothing is said of them."
    ]


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _listed(found: list[Judged]) -> str:
    return _some([f"{j.target} {j.weight:.0%}" for j in sorted(found, key=lambda j: -j.weight)])
