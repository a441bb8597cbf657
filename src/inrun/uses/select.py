"""Which samples to train on, under one frame: at any horizon, before training or while it goes.

    offline    score a recorded run's samples by look-ahead, keep the best part, train on it again
    online     choose from each batch of candidates by K-step value, and train on those alone
    check      train every arm again from the same seeds: a selection beside its controls

Horizon 1 asks what a sample does at once, the run's end what it does to the finished model (the
frame of arXiv 2605.18814); docs/selection.md says what was measured between them.
"""

from inrun.uses._arms import Comparison, check
from inrun.uses._offline import OfflineSelection, offline
from inrun.uses._online import BY, online
from inrun.uses._online_selection import OnlineSelection

__all__ = [
    "BY",
    "Comparison",
    "OfflineSelection",
    "OnlineSelection",
    "check",
    "offline",
    "online",
]
