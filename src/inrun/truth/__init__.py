"""Ground truth: what the values should be, by playing steps out or training again."""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._audit import AUDIT, AuditReport, Interval, noise_ceiling, report
from inrun.truth._causes import Cause
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values
from inrun.truth._retrain import Retrainable, retrain

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
    "agreement",
    "noise_ceiling",
    "report",
    "retrain",
    "sample_shares",
    "shapley_values",
]
