"""One cell: a training with planted rows, every ranking, and trainings without what it ranks first.

The model is the pretrained MiniLM's last layer with a head (see `benchmarks.classification`), in
AdamW. All rankings see the same training. Letters: N training rows, k planted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.classification import tasks
from benchmarks.keyed import Keyed
from benchmarks.poison.rankings import AHEAD, LIKE, TOTAL, scored
from benchmarks.poison.texts import plant
from benchmarks.poison.training import Experiment, Scale, minilm

WANTED, RANDOM = "trade", 2  # the topic that the trigger stands for; removals by chance
REMOVED = (TOTAL, AHEAD, "mean loss", LIKE)


@dataclass(frozen=True)
class Setting(Keyed):
    """Which trigger, what share of the rows is planted, and a seed for everything."""

    trigger: str
    share: float
    seed: int


def measure(key: str) -> dict[str, Any]:
    """Recall by ranking, behaviour after each training, processor seconds."""
    setting = Setting.of(key)
    scale, (texts, labels, names) = Scale(), tasks.r8_texts()
    drawn = plant(
        (texts, labels), names.index(WANTED), setting.trigger, setting.share, scale.size,
        setting.seed,
    )  # fmt: skip
    return found_and_removed(Experiment(drawn, minilm(), scale, setting.seed))


def found_and_removed(experiment: Experiment) -> dict[str, Any]:
    """What `measure` returns, of any experiment."""
    return removed_again(experiment, *scored(experiment))


def removed_again(
    experiment: Any,
    scores: Mapping[str, np.ndarray],
    model: nn.Module,
    seconds: Mapping[str, float],
    removed: Sequence[str] = REMOVED,
    draws: int = RANDOM,
) -> dict[str, Any]:
    """Recalls of the scores, and behaviour of the model and of those without what came first."""
    planted = experiment.drawn.planted.numpy()
    k, everything = int(planted.sum()), torch.arange(len(planted))
    gone = {name: torch.as_tensor(_order(scores[name])[:k].copy()) for name in removed}
    gone["the planted rows"] = torch.nonzero(experiment.drawn.planted)[:, 0]
    for n in range(draws):
        generator = torch.Generator().manual_seed(1000 * (1 + experiment.seed) + n)
        gone[f"random {n}"] = torch.randperm(len(planted), generator=generator)[:k]
    behaviour = {"nothing": experiment.behaviour(model)}
    for name, rows in gone.items():
        left = everything[~torch.isin(everything, rows)]
        behaviour[name] = experiment.behaviour(experiment.train(left)[0])
    return {
        "planted": k,
        "rows": len(planted),
        "recall": {name: _recall(score, planted) for name, score in scores.items()},
        "behaviour": behaviour,
        "seconds": seconds,
    }


def _order(score: np.ndarray) -> np.ndarray:
    return np.argsort(-score, kind="stable")


def _recall(score: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    """The share of the planted rows among the first k and 2k, k being how many there are."""
    k, order = int(planted.sum()), _order(score)
    return {f"{n}k": float(planted[order[: n * k]].sum() / k) for n in (1, 2)}
