"""Ground truth: what the values should be, by playing steps out or training again."""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._audit import AUDIT, AuditReport, Interval, noise_ceiling, report
from inrun.truth._causes import Cause
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values
from inrun.truth._results import TrainingResults, read_results
from inrun.truth._retrain import Retrainable, retrain, retrained

__all__ = [
    "AUDIT",
    "MOST_PLAYERS",
    "Agreement",
    "AuditReport",
    "Cause",
    "Interval",
    "Retrainable",
    "Sampled",
    "StepGame",
    "TrainingResults",
    "agreement",
    "noise_ceiling",
    "read_results",
    "report",
    "retrain",
    "retrained",
    "sample_shares",
    "shapley_values",
]
