"""What inrun stored, opened again; and a run that `inrun train` wrote, trained or asked again.

Such a run's folder says how its model, data and losses are built, so that `inrun prune --check` and
`inrun trace` need no code of the user's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from inrun.errors import MisuseError, StoreError
from inrun.ledger import load_run, store_path
from inrun.replay import Replayable, Trajectory, is_recording, open_trajectory
from inrun.training import CONFIG, open_training
from inrun.truth import read_results, retrained
from inrun.uses._check import Train, stored_comparison


@overload
def load(path: str | os.PathLike[str], replayable: Replayable) -> Trajectory: ...
@overload
def load(path: str | os.PathLike[str], *, incomplete: bool = False) -> Any: ...
def load(
    path: str | os.PathLike[str], replayable: Replayable | None = None, *, incomplete: bool = False
) -> Any:
    """Opens what inrun stored.

    Of a run every file is read once, and its checksum compared; one of an earlier version, whose
    files carry no checksums, is read with an `InRunWarning`.

    Args:
        path: the folder of a run (`inrun.attach(store=)`, `inrun train`) or of a recorded run
            (`inrun.record`), or the file of a check (`inrun.check_pruning`, `inrun.select.check`)
            or of trainings without single samples (`inrun.truth.retrain`).
        replayable: model, optimizer and losses of a recorded run, which are not stored with it.
        incomplete: reads of a damaged run what comes before the first part that is torn, changed
            or missing, and warns which one that is.

    Returns:
        A `Run`, a `Trajectory`, a `Comparison`, or the table that `inrun.truth.retrain` returns.

    Raises:
        MisuseError: the path is empty or can be none, or a recorded run came without `replayable`.
        StoreError: nothing of inrun's is there, or a file is missing, torn, changed, there twice or
            of another run; it is named.
    """
    place = store_path(path, "path")
    if os.path.isfile(place):  # False where the file system cannot say
        try:
            question, known = read_results(place)
        except StoreError as error:
            if str(place).endswith(".jsonl"):
                raise
            raise StoreError(  # never advise to mend a file that is not ours
                f"{place} is a file that holds no results of InRun, and a run is a folder."
            ) from error
        if question["results"] == "retraining":
            return retrained(question, list(known), list(known.values()))
        return stored_comparison(place)
    if replayable is not None:
        return open_trajectory(place, replayable)
    if is_recording(place):
        raise MisuseError(
            f"{place} is a recorded run: to play it again, its model, optimizer and losses are "
            "needed. Pass inrun.load(path, inrun.Replayable(model, optimizer, losses, fetch))."
        )
    return load_run(place, incomplete=incomplete)


def trains_itself(run: Path) -> bool:
    """Whether the run was written by `inrun train`."""
    return (run / CONFIG).exists()


def training_again(run: Path) -> Train:
    """`train(ids, seed)` of a run that `inrun train` wrote: its score on the test rows."""
    return open_training(run).train_again


def replayable_again(run: Path) -> Replayable:
    """What `inrun trace` asks of a run that `inrun train --record` wrote."""
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


def not_reproducible(run: Path, what: str) -> MisuseError:
    """The error where neither the run nor the command line says how to train."""
    return MisuseError(
        f"{run} was not written by `inrun train`, so it does not say {what}. Pass --entry "
        "module:function with a function of yours; docs/uses/prune.md shows what it returns."
    )
