"""`inrun train`: a training on the user's own data, from a configuration that can be run again.

`open_training("RUN")` builds the model, the data and the losses of a run once more.
"""

from inrun.training._config import CONFIG, TASKS, TrainConfig, read_config
from inrun.training._training import Training, open_training

__all__ = ["CONFIG", "TASKS", "TrainConfig", "Training", "open_training", "read_config"]
