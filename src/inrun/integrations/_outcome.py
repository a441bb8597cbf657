"""What an attribution has to say within a framework's training: scalars, tables, files."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from inrun.attribution import Attribution
from inrun.errors import StoreError
from inrun.integrations._trackers import Tracker, worst
from inrun.ledger import ENTRIES, read_state, write_state

STATE = "inrun.safetensors"
VALUES = "inrun-values.parquet"
LEDGER = "inrun-ledger.parquet"


def scalars(attribution: Attribution) -> dict[str, float]:
    """The last scored step in numbers, by the names that trackers show; none before the first.

    What is not known (losses, where no pass was run) is left out.
    """
    row = attribution.latest
    if not row:
        return {}
    names = ("closing_loss", *ENTRIES, "residual")
    numbers = {f"inrun/{name}": float(row[name]) for name in names}
    numbers |= {
        "inrun/residual_share": attribution.residual_share,
        "inrun/overhead": attribution.overhead,
    }
    return {name: number for name, number in numbers.items() if not isnan(number)}


def show_worst(attribution: Attribution, trackers: list[Tracker], step: int) -> None:
    """The table of worst samples, to every tracker."""
    table = worst(attribution.values())
    for tracker in trackers:
        tracker.table("inrun/worst_samples", table, step)


def write_checkpoint(attribution: Attribution, state: Mapping[str, Any], folder: Path) -> None:
    """The state, and the values so far, beside a framework's checkpoint."""
    write_state(folder / STATE, state)
    pq.write_table(attribution.values(), folder / VALUES)


def load_checkpoint(attribution: Attribution, folder: Path) -> None:
    """Goes on from the state beside a framework's checkpoint.

    Raises:
        StoreError: it is not there, or was changed or cut off.
    """
    if not (folder / STATE).exists():
        raise StoreError(
            f"{folder / STATE} is missing: the checkpoint was written without InRun, or the "
            "process was killed before it was, or it lies elsewhere (say where in the trainer's "
            "arguments, resume_from_checkpoint=...). Resume from a checkpoint that has it, or take "
            "the callback away."
        )
    attribution.load_state_dict(read_state(folder / STATE))


def write_result(attribution: Attribution, folder: Path) -> None:
    """Values and books, when training is over."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(attribution.values(), folder / VALUES)
    pq.write_table(attribution.ledger(), folder / LEDGER)
