"""A run of `inrun train`: its folder opened, trained into, and finished.

RUN/config.json         what was asked for            RUN/run.json, visits/, ledger/  the values
RUN/samples.parquet     the training samples          RUN/tokens/      values for each token
RUN/validation.parquet  those that judged             RUN/trajectory/  a recording
RUN/checkpoints/        while it goes on              RUN/model/       the result
RUN/measured.json       time, memory, test score      RUN/probabilities.parquet  of classes
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from inrun.errors import NotSupportedError, StoreError
from inrun.ledger import PartId, Run, write_document, write_table
from inrun.training._arguments import CHECKPOINTS, arguments_of
from inrun.training._checkpoints import last_whole, require_unchanged
from inrun.training._samples import samples_of
from inrun.training._seen import keep_seen
from inrun.training._trainer import Bar, RowTrainer, RunScoring, interruptible
from inrun.training._training import MODEL, Training

SAMPLES, VALIDATION = "samples.parquet", "validation.parquet"
MEASURED = "measured.json"


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    `score` is on the test samples: accuracy, or minus a loss. `seconds` are in all,
    `overhead` is attribution's time over the training's own, `memory` is in bytes.
    """

    steps: int
    score: float
    seconds: float
    overhead: float
    memory: int


class Meter:
    """The highest memory from now on: the process's growth, on a GPU the allocator's own peak."""

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with suppress(OSError):  # not Linux, or not allowed: the highest of its whole life
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _resident("VmRSS")

    @property
    def memory(self) -> int:
        """At the highest point so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, _resident("VmHWM") - self._start)


def _resident(what: str) -> int:
    """Resident memory of this process, in bytes: 'VmRSS' now, 'VmHWM' at its highest."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the highest is all there is to ask for
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


class TrainingInterrupt(Exception):  # noqa: N818 (a signal, no error)
    """The user stopped the training; it can go on from its checkpoint."""


def run_training(
    training: Training,
    run: Path,
    console: Console,
    *,
    resume: bool = False,
    at: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Trains with attribution into the run's folder, or goes on with what is there to `resume`.

    Lines on `console` say how far it is; `at` is told what is being done.

    Raises:
        StoreError: the folder holds a run and is not resumed, or is resumed and holds none.
        TrainingInterrupt: by the keyboard; a checkpoint was written.
    """
    arguments, model = arguments_of(training.config, run), training.drawn()
    with arguments.main_process_first(local=False):
        checkpoint = _resumed(training, run) if resume else None
        if not resume:
            _opened(training, run)
    meter = Meter(training.device)
    scoring = RunScoring(training, run, console, at)
    samples = training.splits.training
    trainer = RowTrainer(
        training, model, arguments, samples, scoring,
        [Bar()] if console.is_terminal else [],
    )  # fmt: skip
    with interruptible(scoring):
        trainer.train(resume_from_checkpoint=checkpoint)
    if scoring.interrupted:
        done, steps = trainer.state.global_step, trainer.state.max_steps
        raise TrainingInterrupt(f"after step {done} of {steps}")
    at("writing the model, and testing it")
    trainer.save_model(str(run / MODEL))
    outcome = Outcome(
        trainer.state.global_step, training.score(model), scoring.seconds,
        scoring.overhead, meter.memory,
    )  # fmt: skip
    if trainer.is_world_process_zero():
        _finish(training, run, scoring, outcome)
    return outcome


def has_checkpoint(run: Path) -> bool:
    """Whether a run can go on."""
    return last_whole(run) is not None


def require_new(run: Path) -> None:
    """Raises where no run can be written, before anything is loaded.

    Raises:
        StoreError: the folder holds a run, or is none and cannot be made.
    """
    if (run / "run.json").exists():
        raise StoreError(
            f"{run} holds a run already. Go on with it by --resume, or name a new folder with "
            "--out."
        )
    there = next(place for place in (run, *run.absolute().parents) if place.exists())
    if not there.is_dir():
        raise StoreError(f"--out {run} cannot be made a folder: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"--out {run} cannot be written: {there} may not be written into.")


def _opened(training: Training, run: Path) -> None:
    """Makes the folder.

    Raises:
        StoreError: it holds a run, or cannot be made.
    """
    require_new(run)
    if training.arguments.process_index:
        return
    config = training.config
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--out {run} cannot be made: {error.strerror}.") from error
    config.write(run, versions={"torch": torch.__version__})
    write_table(run / SAMPLES, samples_of(training.splits.training, config), PartId("training"))
    write_table(run / VALIDATION, samples_of(training.judges(), config), PartId("validation"))


def _resumed(training: Training, run: Path) -> str:
    """The last checkpoint that is whole.

    Raises:
        StoreError: there is nothing to resume, or a file of the checkpoint is not as it was.
        NotSupportedError: a recorded run is resumed.
    """
    if training.config.record:
        raise NotSupportedError(
            "A run that is recorded for look-ahead cannot be resumed yet. Start it again, or "
            "train without --record."
        )
    if (run / MEASURED).exists():
        raise StoreError(f"{run} is finished: there is nothing left to train.")
    found = last_whole(run)
    if found is None:
        raise StoreError(
            f"{run} has no checkpoint: it was cut off before the first one was written. Remove the "
            "folder and start again."
        )
    require_unchanged(found)
    return str(found)


def _finish(training: Training, run: Path, scoring: RunScoring, outcome: Outcome) -> None:
    """What is known at the end; `measured.json` is written last and says that it is the end."""
    (run / MODEL / "training_args.bin").unlink()  # pickled, and config.json says it all
    keep_seen(training, Run(run), scoring.seen)
    write_document(run / MEASURED, asdict(outcome))
    for left in [*(run / CHECKPOINTS).glob("checkpoint-*")]:
        shutil.rmtree(left)
    for left in [*(run / CHECKPOINTS).glob("inrun-*.parquet")]:  # they are the run's own
        left.unlink()
    if not any((run / CHECKPOINTS).iterdir()):  # a tracker's files stay
        (run / CHECKPOINTS).rmdir()
