"""Ground truth: what the values should be, by playing steps out or training again.

An `Auditor` plays random steps of a run out while it trains, and compares.
"""

from inrun.truth._audit import (
    AUDIT,
    Audit,
    AuditReport,
    Interval,
    median_interval,
    noise_ceiling,
    report,
)
from inrun.truth._audit_utility import AuditUtility
from inrun.truth._auditor import Auditor
from inrun.truth._causes import UNJUDGED, Cause
from inrun.truth._game import (
    MOST_PLAYERS,
    Agreement,
    Sampled,
    StepGame,
    agreement,
    sample_shares,
    shapley_values,
)
from inrun.truth._removals import DatamodelingScore, RemovalCurve, lds, removal_curve
from inrun.truth._retrain import Retrainable, TrainingResults, read_results, retrain, retrained
from inrun.truth._schedule import AuditSchedule

__all__ = [
    "AUDIT",
    "MOST_PLAYERS",
    "UNJUDGED",
    "Agreement",
    "Audit",
    "AuditReport",
    "AuditSchedule",
    "AuditUtility",
    "Auditor",
    "Cause",
    "DatamodelingScore",
    "Interval",
    "RemovalCurve",
    "Retrainable",
    "Sampled",
    "StepGame",
    "TrainingResults",
    "agreement",
    "lds",
    "median_interval",
    "noise_ceiling",
    "read_results",
    "removal_curve",
    "report",
    "retrain",
    "retrained",
    "sample_shares",
    "shapley_values",
]
