"""From values to decisions."""

from inrun.uses import select
from inrun.uses._agreement import Agreement, agreement, agreements
from inrun.uses._check import Train, check_pruning
from inrun.uses._comparison import ARMS, Comparison
from inrun.uses._confounds import Confounds, confounds
from inrun.uses._diff import Difference, diff
from inrun.uses._explain import Explanation, explain, jumps
from inrun.uses._explained_again import TrainedAgain, explain_again
from inrun.uses._gain import Mean, half_interval
from inrun.uses._groups import doubted_by_group, look_at_labels
from inrun.uses._harm import HarmProfile, class_harm, harm_profile, harm_sums
from inrun.uses._judges import JUDGES, judge_notes, judged_as, judged_classes, unjudged
from inrun.uses._kept import OwnRows, check_place, write_kept
from inrun.uses._labels import LabelDoubts, doubts, label_doubts, note_label_doubts
from inrun.uses._load import (
    load,
    not_reproducible,
    replayable_again,
    training_again,
    trains_itself,
)
from inrun.uses._methods import Contents, bm25, values_by_method
from inrun.uses._near import near_groups
from inrun.uses._online import anticipating
from inrun.uses._prune import Pruning, prune
from inrun.uses._ranking import FEWEST, Ranked, rank, visit_places
from inrun.uses._rollup import Rollup, rollup
from inrun.uses._samples import TIMES, Valued, described, duplicate_groups, outliers, visited
from inrun.uses._trace import METHODS, Trace, trace
from inrun.uses._wrong_labels import Planted, WrongLabels, plant, wrong_labels

__all__ = [
    "ARMS",
    "FEWEST",
    "JUDGES",
    "METHODS",
    "TIMES",
    "Agreement",
    "Comparison",
    "Confounds",
    "Contents",
    "Difference",
    "Explanation",
    "HarmProfile",
    "LabelDoubts",
    "Mean",
    "OwnRows",
    "Planted",
    "Pruning",
    "Ranked",
    "Rollup",
    "Trace",
    "Train",
    "TrainedAgain",
    "Valued",
    "WrongLabels",
    "agreement",
    "agreements",
    "anticipating",
    "bm25",
    "check_place",
    "check_pruning",
    "class_harm",
    "confounds",
    "described",
    "diff",
    "doubted_by_group",
    "doubts",
    "duplicate_groups",
    "explain",
    "explain_again",
    "half_interval",
    "harm_profile",
    "harm_sums",
    "judge_notes",
    "judged_as",
    "judged_classes",
    "jumps",
    "label_doubts",
    "load",
    "look_at_labels",
    "near_groups",
    "not_reproducible",
    "note_label_doubts",
    "outliers",
    "plant",
    "prune",
    "rank",
    "replayable_again",
    "rollup",
    "select",
    "trace",
    "training_again",
    "trains_itself",
    "unjudged",
    "values_by_method",
    "visit_places",
    "visited",
    "write_kept",
    "wrong_labels",
]
