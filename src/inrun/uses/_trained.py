"""What decisions need of a run that `inrun train` wrote: training again, and asking it something.

Such a run's folder says how its model, data and losses are built, so that `inrun prune --check` and
`inrun trace` need no code of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inrun.errors import MisuseError
from inrun.training import CONFIG, open_training
from inrun.uses._check import Train
from inrun.uses._trace import Replayable


def trains_itself(run: Path) -> bool:
    """Whether the run was written by `inrun train`."""
    return (run / CONFIG).exists()


def training_again(run: Path) -> Train:
    """`train(ids, seed)` of a run that `inrun train` wrote: its score on the test rows.

    Raises:
        StoreError: its configuration cannot be read.
        MisuseError: its model or data are not where they were.
    """
    return open_training(run).train_again


def replayable_again(run: Path) -> Replayable:
    """What `inrun trace` asks of a run that `inrun train --record` wrote.

    Raises:
        StoreError: its configuration cannot be read.
        MisuseError: its model or data are not where they were.
    """
    training = open_training(run)
    model, optimizer = training.start()

    def query_loss(model: nn.Module, row: Mapping[str, Any]) -> Tensor:
        return training.loss_fn(model, training.query(row))

    return Replayable(
        model, optimizer, training.losses, training.fetch, query_loss,
        weights=training.weights,
        token_losses=training.token_terms if training.has_tokens else None,
        tokens=training.pieces if training.has_tokens else None,
    )  # fmt: skip


def refuse_unless_told(run: Path, what: str) -> MisuseError:
    """The error where neither the run nor the command line says how to train."""
    return MisuseError(
        f"{run} was not written by `inrun train`, so it does not say {what}. Pass --entry "
        "module:function with a function of yours; docs/uses/prune.md shows what it returns."
    )
