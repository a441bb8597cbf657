"""Which samples to train on, under one frame: at any horizon, before training or while it goes.

    offline    score a recorded run's samples by look-ahead, keep the best part, train on it again
    online     choose from each batch of candidates by its K-step value, and train on those alone
    check      train every arm again from the same seeds: the selection beside its controls
"""

from inrun.uses._online import BY, OnlineSelection, online

__all__ = ["BY", "OnlineSelection", "online"]
