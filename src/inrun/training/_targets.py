"""The validation loss by target: which samples judge, in which groups, and what each group counts.

Classes are targets where they are few; else, or where somebody named a column, that column's
values; else there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from inrun.training._config import TrainConfig
from inrun.training._objectives import Batch
from inrun.training._samples import Sample, Splits
from inrun.utility import HALF, Utility

if TYPE_CHECKING:
    from inrun.training._training import Training

MOST_CLASSES = 20  # beyond it the validation set is one target: each costs a pass per step
EACH = "each"  # in a batch: what each row's summed loss is multiplied by
_TAKEN = {"total", "step", "sample_id", "value", "value_normalised", "visits"}


def judges(config: TrainConfig, splits: Splits) -> list[Sample]:
    """The validation samples that each step is judged by, as evenly from targets as can be."""
    found, most = list(splits.validation), config.validation_rows
    if config.task == "multi-label" and len(splits.classes) <= MOST_CLASSES:
        most = max(1, most // len(splits.classes))  # each is passed once per class
    if len(found) <= most:
        return found
    order = np.random.default_rng(config.seed).permutation(len(found)).tolist()
    turn: Counter[str] = Counter()
    ranked = []
    for i in order:
        name = _target(config, splits, found[i])
        turn[name] += 1
        ranked.append((turn[name], i))
    chosen = sorted(i for _, i in sorted(ranked)[:most])
    return [found[i] for i in chosen]


def _target(config: TrainConfig, splits: Splits, sample: Sample) -> str:
    """Of a validation sample."""
    if config.target_column is not None:
        return str(sample.row.cells.get(config.target_column))
    one_class = isinstance(sample.label, str) and 2 <= len(splits.classes) <= MOST_CLASSES
    return sample.label if one_class else "validation"


def utility_of(training: Training) -> Utility:
    """The validation loss, by target."""
    config, splits = training.config, training.splits
    named: dict[str, list[Sample]] = {}
    for sample in training.judges():
        named.setdefault(_target(config, splits, sample), []).append(sample)
    if len(named) == 1:
        batch = training.collate(next(iter(named.values())))
        return Utility(
            training.loss_fn, targets=_by_label(training, batch) or {"validation": batch}
        )
    groups = {_safe(name): named[name] for name in sorted(named)}
    targets = {name: training.collate(samples) for name, samples in groups.items()}
    weights = dict.fromkeys(targets, 1.0)
    if config.judge != "even" and config.target_column is None:
        counts = Counter(str(sample.label) for sample in splits.training)
        weights = {_safe(name): float(counts[name]) for name in sorted(named)}
    if config.validation_parts == 1 and config.budget is None:
        targets[HALF] = _half(training, groups, targets, weights)
        weights[HALF] = 0.0
    return Utility(training.loss_fn, targets=targets, weights=weights)


def _half(
    training: Training,
    groups: Mapping[str, Sequence[Sample]],
    targets: Mapping[str, Batch],
    weights: Mapping[str, float],
) -> Batch:
    """See `HALF`: half of each target's rows, at random; odd numbers are rounded in turn."""
    rng, most = np.random.default_rng(training.config.seed), False
    chosen: list[Sample] = []
    each: list[float] = []
    for name, samples in groups.items():
        size = (len(samples) + most) // 2
        most ^= len(samples) % 2 == 1
        chosen += [samples[i] for i in rng.permutation(len(samples))[:size].tolist()]
        labels = float(training.weights(targets[name]).sum())
        each += [weights[name] / sum(weights.values()) / max(labels, 1.0)] * size
    return training.collate(chosen) | {EACH: torch.tensor(each, device=training.device)}


def _by_label(training: Training, batch: Batch) -> dict[str, Batch]:
    """Of several classes per row one target each: the same rows, asked for that class alone."""
    classes = training.splits.classes
    if training.config.task != "multi-label" or not 2 <= len(classes) <= MOST_CLASSES:
        return {}
    asked = torch.eye(len(classes), dtype=torch.bool, device=training.device)
    return {
        _safe(name): batch | {"labels": batch["labels"].where(asked[k], -100)}
        for k, name in enumerate(classes)
    }


def _safe(name: str) -> str:
    """A class called like a column of the tables gets a name beside it."""
    return f"class {name}" if name in _TAKEN else name
