"""Ground truth: what the values should be, by playing steps out or training again."""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values
from inrun.truth._retrain import Retrainable, retrain

__all__ = [
    "MOST_PLAYERS",
    "Agreement",
    "Retrainable",
    "Sampled",
    "StepGame",
    "agreement",
    "retrain",
    "sample_shares",
    "shapley_values",
]
