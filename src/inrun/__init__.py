"""InRun: what each training sample did to a PyTorch model, while it is being trained.

    attribution = inrun.attach(model, optimizer, inrun.Utility(loss_fn, validation_batch))
    for ids, batch in loader:
        with attribution.batch(ids):
            loss_fn(model, batch).backward()
        optimizer.step(); optimizer.zero_grad()
    attribution.values()

A value is a contribution to the *reduction* of the validation loss, in its units: positive helped.
"""

from inrun import errors, optim, truth
from inrun.attribution import Attribution, attach
from inrun.ledger import Run, load
from inrun.replay import Lookahead, Recorder, Trajectory, lookahead, open_trajectory, record
from inrun.uses import (
    Pruning,
    Replayable,
    Rollup,
    Trace,
    check_pruning,
    harm_profile,
    label_doubts,
    prune,
    rollup,
    select,
    trace,
)
from inrun.utility import Utility

__version__ = "0.1.0"

__all__ = [
    "Attribution",
    "Lookahead",
    "Pruning",
    "Recorder",
    "Replayable",
    "Rollup",
    "Run",
    "Trace",
    "Trajectory",
    "Utility",
    "__version__",
    "attach",
    "check_pruning",
    "errors",
    "harm_profile",
    "label_doubts",
    "load",
    "lookahead",
    "open_trajectory",
    "optim",
    "prune",
    "record",
    "rollup",
    "select",
    "trace",
    "truth",
]
