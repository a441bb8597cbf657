"""One cell: a split trained on with attribution, then trained again after every pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.classification.evidence import gather, trained
from benchmarks.classification.tasks import accuracy, split
from benchmarks.keyed import Keyed
from benchmarks.pruning.rankings import BALANCED, METHODS, PLAIN_ONLY, kept, rankings

DROPS = (0.05, 0.1, 0.2, 0.3, 0.5)
FULL, CLEAN = "all samples", "without exactly the wrong labels"


@dataclass(frozen=True)
class Setting(Keyed):
    """A data set, the share of wrong labels in its training part, and a seed for everything."""

    task: str
    noise: float
    seed: int


def measure(key: str) -> dict[str, Any]:
    """Test accuracy by ranking and dropped share; every training starts from the same new start."""
    setting = Setting.of(key)
    data = split(setting.task, setting.noise, setting.seed)
    evidence = gather(data, setting.seed, METHODS)
    labels = data.labels.numpy()

    def scored(rows: np.ndarray) -> float:
        model = trained(data, torch.as_tensor(rows), 1000 + setting.seed)
        return round(accuracy(model, data.test), 5)

    found: dict[str, Any] = {}
    for name, score in rankings(data, evidence, setting.seed).items():
        for suffix, groups in (("", None), (BALANCED, labels)):
            if groups is None or name not in PLAIN_ONLY:
                found[name + suffix] = {
                    str(share): scored(kept(score, share, groups)) for share in DROPS
                }
    everything = np.arange(len(labels))
    return {
        "accuracy": found,
        FULL: scored(everything),
        CLEAN: scored(everything[~data.wrong.numpy()]),
        "seconds": {name: round(s, 1) for name, s in evidence.seconds.items()},
        "rows": {"training": len(labels), "test": len(data.test[1])},
    }
