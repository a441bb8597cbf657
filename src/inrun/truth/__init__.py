"""Ground truth: what the values should be, by playing steps out, and how well they agree."""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values

__all__ = [
    "MOST_PLAYERS",
    "Agreement",
    "Sampled",
    "StepGame",
    "agreement",
    "sample_shares",
    "shapley_values",
]
