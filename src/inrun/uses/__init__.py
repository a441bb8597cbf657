"""From values to decisions."""

from inrun.uses._harm import harm_profile, harm_sums
from inrun.uses._labels import LabelDoubts, class_harm, doubt_labels, label_doubts

__all__ = [
    "LabelDoubts",
    "class_harm",
    "doubt_labels",
    "harm_profile",
    "harm_sums",
    "label_doubts",
]
