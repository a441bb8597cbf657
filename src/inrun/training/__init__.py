"""`inrun train`: a training on the user's own data, from a configuration that can be run again.

`open_training("RUN")` builds the model, the data and the losses of a run once more. What trains
needs the Trainer of `transformers`, and is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inrun.training._config import CONFIG, ONE_CLASS, PROBABILITIES, TASKS, TrainConfig, read_config
from inrun.training._objectives import ANSWERS
from inrun.training._rows import task_seen
from inrun.training._training import Training, open_training

if TYPE_CHECKING:
    from inrun.training._plan import Plan, plan_training
    from inrun.training._run import (
        Outcome,
        TrainingInterrupt,
        has_checkpoint,
        require_new,
        run_training,
    )

__all__ = [
    "ANSWERS",
    "CONFIG",
    "ONE_CLASS",
    "PROBABILITIES",
    "TASKS",
    "Outcome",
    "Plan",
    "TrainConfig",
    "Training",
    "TrainingInterrupt",
    "has_checkpoint",
    "open_training",
    "plan_training",
    "read_config",
    "require_new",
    "run_training",
    "task_seen",
]


def __getattr__(name: str) -> Any:
    for home, names in {
        "_plan": ("Plan", "plan_training"),
        "_run": ("Outcome", "TrainingInterrupt", "has_checkpoint", "require_new", "run_training"),
    }.items():
        if name in names:
            return getattr(importlib.import_module(f"inrun.training.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
