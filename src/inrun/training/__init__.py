"""`inrun train`: a training on the user's own data, from a configuration that can be run again.

`open_training("RUN")` builds the model, the data and the losses of a run once more.
"""

from inrun.training._checkpoint import CHECKPOINT
from inrun.training._config import CONFIG, TASKS, TrainConfig, read_config
from inrun.training._loop import PROBABILITIES, SAMPLES, Outcome, TrainingInterrupt
from inrun.training._loop import train as run_training
from inrun.training._plan import Plan, plan_training, read_comparison
from inrun.training._rows import task_seen
from inrun.training._training import Training, open_training

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "PROBABILITIES",
    "SAMPLES",
    "TASKS",
    "Outcome",
    "Plan",
    "TrainConfig",
    "Training",
    "TrainingInterrupt",
    "open_training",
    "plan_training",
    "read_comparison",
    "read_config",
    "run_training",
    "task_seen",
]
