"""InRun: what each training sample did to a PyTorch model, while it is being trained.

    attribution = inrun.attach(model, optimizer, inrun.Utility(loss_fn, validation_batch))
    for ids, batch in loader:
        with attribution.batch(ids):
            loss_fn(model, batch).backward()
        optimizer.step(); optimizer.zero_grad()
    attribution.values()

A value is a contribution to the *reduction* of the validation loss, in its units: positive helped.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` finds when it is asked for, said to type checkers
    from inrun import errors, optim, truth
    from inrun.answers import Answer
    from inrun.attribution import Attribution, Budget, EveryStep, Options, Sampled, Window, attach
    from inrun.ledger import Run
    from inrun.replay import (
        Lookahead,
        Recorder,
        Replayable,
        Trajectory,
        lookahead,
        lookahead_between,
        lookahead_groups,
        record,
    )
    from inrun.uses import (
        Agreement,
        Comparison,
        Confounds,
        Difference,
        Explanation,
        HarmProfile,
        LabelDoubts,
        Pruning,
        Rollup,
        Trace,
        WrongLabels,
        agreement,
        check_pruning,
        confounds,
        diff,
        explain,
        explain_again,
        harm_profile,
        label_doubts,
        load,
        plant,
        prune,
        rollup,
        select,
        trace,
        wrong_labels,
    )
    from inrun.utility import Utility, contrast

__version__ = "0.2.0"

__all__ = [
    "Agreement",
    "Answer",
    "Attribution",
    "Budget",
    "Comparison",
    "Confounds",
    "Difference",
    "EveryStep",
    "Explanation",
    "HarmProfile",
    "LabelDoubts",
    "Lookahead",
    "Options",
    "Pruning",
    "Recorder",
    "Replayable",
    "Rollup",
    "Run",
    "Sampled",
    "Trace",
    "Trajectory",
    "Utility",
    "Window",
    "WrongLabels",
    "__version__",
    "agreement",
    "attach",
    "check_pruning",
    "confounds",
    "contrast",
    "diff",
    "errors",
    "explain",
    "explain_again",
    "harm_profile",
    "label_doubts",
    "load",
    "lookahead",
    "lookahead_between",
    "lookahead_groups",
    "optim",
    "plant",
    "prune",
    "record",
    "rollup",
    "select",
    "trace",
    "truth",
    "wrong_labels",
]

_HOMES = {
    "attribution": ("Attribution", "Budget", "EveryStep", "Options", "Sampled", "Window", "attach"),
    "answers": ("Answer",),
    "ledger": ("Run",),
    "replay": (
        "Lookahead", "Recorder", "Replayable", "Trajectory", "lookahead", "lookahead_between",
        "lookahead_groups", "record",
    ),
    "uses": (
        "Agreement", "Comparison", "Confounds", "Difference", "Explanation", "HarmProfile",
        "LabelDoubts", "Pruning", "Rollup", "Trace", "WrongLabels", "agreement", "check_pruning",
        "confounds", "diff", "explain", "explain_again", "harm_profile", "label_doubts", "load",
        "plant", "prune", "rollup", "select", "trace", "wrong_labels",
    ),
    "utility": ("Utility", "contrast"),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name from its room, imported with all that it needs when it is first asked for."""
    if name in _ROOM_OF:
        found = getattr(importlib.import_module(f"inrun.{_ROOM_OF[name]}"), name)
    elif name in __all__:
        found = importlib.import_module(f"inrun.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
