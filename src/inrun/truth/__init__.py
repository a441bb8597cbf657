"""Ground truth: what the values should be, by playing steps out or training again.

`Auditing` plays random steps of a run out while it trains, and compares.
"""

from inrun.truth._agreement import Agreement, agreement
from inrun.truth._audit import AUDIT, AuditReport, Interval, noise_ceiling, report
from inrun.truth._auditing import Auditing
from inrun.truth._auditor import Audit
from inrun.truth._causes import Cause
from inrun.truth._game import MOST_PLAYERS, Sampled, StepGame, sample_shares, shapley_values
from inrun.truth._retrain import Retrainable, retrain
from inrun.truth._schedule import AuditSchedule

__all__ = [
    "AUDIT",
    "MOST_PLAYERS",
    "Agreement",
    "Audit",
    "AuditReport",
    "AuditSchedule",
    "Auditing",
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
