"""Ground truth: what the values should be, by playing steps out, and how well they agree."""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._audit import AUDIT, AuditReport, Interval, noise_ceiling, report
from inrun.truth._causes import Cause
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values

__all__ = [
    "AUDIT",
    "MOST_PLAYERS",
    "Agreement",
    "AuditReport",
    "Cause",
    "Interval",
    "Sampled",
    "StepGame",
    "agreement",
    "noise_ceiling",
    "report",
    "sample_shares",
    "shapley_values",
]
