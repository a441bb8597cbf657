"""From values to decisions."""

from inrun.uses import select
from inrun.uses._check import ARMS, Check, Mean, Train, check_pruning
from inrun.uses._contents import duplicate_groups
from inrun.uses._harm import harm_profile, harm_sums
from inrun.uses._join import described
from inrun.uses._labels import LabelDoubts, class_harm, doubt_labels, label_doubts
from inrun.uses._outliers import TIMES, outliers
from inrun.uses._prune import Pruning, prune
from inrun.uses._ranking import Ranked, rank
from inrun.uses._rollup import Rollup, rollup
from inrun.uses._rows import check_place, write_kept
from inrun.uses._trace import METHODS, Replayable, Trace, trace
from inrun.uses._trained import (
    refuse_unless_told,
    replayable_again,
    training_again,
    trains_itself,
)

__all__ = [
    "ARMS",
    "METHODS",
    "TIMES",
    "Check",
    "LabelDoubts",
    "Mean",
    "Pruning",
    "Ranked",
    "Replayable",
    "Rollup",
    "Trace",
    "Train",
    "check_place",
    "check_pruning",
    "class_harm",
    "described",
    "doubt_labels",
    "duplicate_groups",
    "harm_profile",
    "harm_sums",
    "label_doubts",
    "outliers",
    "prune",
    "rank",
    "refuse_unless_told",
    "replayable_again",
    "rollup",
    "select",
    "trace",
    "training_again",
    "trains_itself",
    "write_kept",
]
